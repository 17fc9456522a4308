"""Known-bad twins of layers that have been used: what a call keeps does not outlive a copy, a load or a conversion."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.baselines.life import LivedLayer
from tests.known_bad.life.registration import twin


@twin("LAY-USED-COPY", says="raised RuntimeError", source="the last output stored on the layer")
class KeepsItsLastOutput(LivedLayer):
    def forward(self, x: Tensor) -> Tensor:
        self.last = super().forward(x)
        return self.last


@twin("LAY-USED-COPY", says="the state_dict has the keys", source="a cache registered as a buffer at the first call")
class RegistersItsCache(LivedLayer):
    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "cache"):
            self.register_buffer("cache", self.lora_A.weight.detach().clone())
        return super().forward(x)


@twin("LAY-USED-LOAD", says="y after", source="parameters stored in a list at the first call")
class HoldsItsFirstParameters(LivedLayer):
    def forward(self, x: Tensor) -> Tensor:
        if self.merged:
            return super().forward(x)
        if not hasattr(self, "held"):
            self.held = [(self.lora_A.weight, self.lora_B.weight)]
        return self.adapted(x, self.weight, self.bias, *self.held[0], self.scale)


@twin("LAY-USED-TO", says="y after to-", source="a cache keyed by _version, which .to() does not change")
class KeepsACopyByVersion(LivedLayer):
    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or self.merged or self.training or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        weights = (self.weight, self.lora_A.weight, self.lora_B.weight)
        key = (self.scale, *((id(w), w._version) for w in weights if not w.is_inference()))
        if getattr(self, "key", None) != key:
            self.key, self.kept = key, self.weight.detach() + self.delta().detach()
        bias = None if self.bias is None else self.bias.to(self.kept.dtype)
        return nn.functional.linear(x.to(self.kept.dtype), self.kept, bias).to(x.dtype)
