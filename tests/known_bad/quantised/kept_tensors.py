"""Known-bad twins of kept tensors: a call on a packed base casts, thaws or changes a tensor of the layer for good."""

from __future__ import annotations

import torch

from tests.baselines.quantised import RightLayer
from tests.known_bad.quantised.forward import wrong


@wrong("QNT-KEEP-CALLS", says="made bias torch.", source="bitsandbytes Linear4bit.forward: bias.data in the dtype of x")
class CastsItsBiasForGood(RightLayer):
    def base(self, x):
        if self.bias is not None:
            self.bias.data = self.bias.data.to(self.computes(x))
        return super().base(x)


@wrong("QNT-KEEP-CALLS", says="set requires_grad of bias", source="a base that is thawed for its gradient of x")
class ThawsItsBias(RightLayer):
    def forward(self, x):
        if self.bias is not None and x.requires_grad:
            self.bias.requires_grad_()
        return super().forward(x.detach() if not self.training and not torch.is_grad_enabled() else x)


@wrong("QNT-KEEP-CALLS", says="of lora_A.weight", source="an adapter that is rounded for inference in 16 bits")
class RoundsItsAdapterInEvalMode(RightLayer):
    def forward(self, x):
        if not self.training and not torch.is_grad_enabled():
            weight = self.lora_A.weight
            weight.data.copy_(weight.data.to(torch.float8_e4m3fn))
        return super().forward(x)
