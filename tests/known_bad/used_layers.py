"""Known-bad twins of layers that were in use, and of the layer that saves memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.baselines.layer import Layer
from tests.known_bad.layer import twin


@twin("LAY-USED-COPY", says="raised RuntimeError", source="the last output kept on the layer")
class KeepsItsLastOutput(Layer):
    def forward(self, x: Tensor) -> Tensor:
        self.last = super().forward(x)
        return self.last


@twin("LAY-USED-COPY", says="after use: it had", source="a cache registered as a buffer at the first call")
class RegistersItsCache(Layer):
    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "cache"):
            self.register_buffer("cache", self.lora_A.weight.detach().clone())
        return super().forward(x)


class Kept(Layer):
    """A layer whose calls go through other weights than its own."""

    def computed(self, x: Tensor, lora_A: Tensor, lora_B: Tensor) -> Tensor:
        return self.right.lora_linear(
            x,
            self.weight,
            self.bias,
            lora_A,
            lora_B,
            self.scale,
            dropout=self.dropout,
            dropout_position=self.position,
            training=self.training,
        )


@twin("LAY-USED-LOAD", says="worst", source="parameters kept in a list at the first call")
class HoldsItsFirstParameters(Kept):
    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "held"):
            self.held = [(self.lora_A.weight, self.lora_B.weight)]
        return self.computed(x, *self.held[0])


@twin(
    "LAY-USED-TO",
    says="without a graph",
    dtypes=("bfloat16",),
    source="a cache whose key is _version, which .to() keeps",
)
class KeepsACopyByVersion(Layer):
    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or self.merged or self.use_dora:
            return super().forward(x)
        weights = (self.weight, self.lora_A.weight, self.lora_B.weight)
        key = tuple((id(w), w._version) for w in weights)
        if getattr(self, "key", None) != key:
            self.key, self.kept = key, self.weight + self.delta()
        return nn.functional.linear(
            x.to(self.kept.dtype), self.kept, None if self.bias is None else self.bias.to(self.kept.dtype)
        )


@twin("LAY-MEMORY-ANY", says="raised ValueError", source="NVIDIA-NeMo/Automodel apply_memory_efficient_lora (ST5)")
class SavesMemoryForThreeDimensionsOnly(Layer):
    def forward(self, x: Tensor) -> Tensor:
        if self.memory_efficient and x.dim() not in (2, 3):
            raise ValueError("not enough values to unpack (expected 3)")
        return super().forward(x)


@twin("LAY-MEMORY-ANY", says="raised RuntimeError", source="NVIDIA-NeMo/Automodel, the memory-efficient path (DT1)")
class SavesMemoryInOneDtype(Layer):
    def forward(self, x: Tensor) -> Tensor:
        if self.memory_efficient and x.dtype != self.lora_A.weight.dtype:
            raise RuntimeError("expected m1 and m2 to have the same dtype")
        return super().forward(x)


@twin("LAY-MEMORY-ANY", says="does not require grad", source="reentrant checkpointing, where x requires none")
class SavesMemoryWhereXRequiresGrad(Layer):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if x.requires_grad or not self.memory_efficient else y.detach()
