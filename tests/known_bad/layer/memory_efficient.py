"""Known-bad twins of memory efficient: it recomputes wrongly, or accepts less than the plain layer."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tests.baselines.layer import Layer
from tests.known_bad.layer.registration import twin


@twin("LAY-MEMORY-EFFICIENT", says="worst", source="S recomputed without the scale")
class RecomputesWithoutTheScale(Layer):
    def forward(self, x: Tensor) -> Tensor:
        scale, self.scale = self.scale, 1.0 if self.memory_efficient else self.scale
        y = super().forward(x)
        self.scale = scale
        return y


@twin("LAY-MEMORY-EFFICIENT", says="⟨d", source="a mask redrawn in place of the forward's")
class RecomputesWithANewMask(Layer):
    def forward(self, x: Tensor) -> Tensor:
        if not self.memory_efficient:
            return super().forward(x)
        y: Tensor = checkpoint(super().forward, x, use_reentrant=False, preserve_rng_state=False)
        torch.rand(1)
        return y


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


@twin("LAY-MEMORY-ANY", says="does not require grad", source="reentrant checkpointing, where x requires no grad")
class SavesMemoryWhereXRequiresGrad(Layer):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if x.requires_grad or not self.memory_efficient else y.detach()
