"""Known-bad twins of side effects: a DoRA layer changes its inputs, keeps a buffer, or is not deterministic."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.baselines.layer import Layer
from tests.known_bad.dora.registration import twin


@twin("DORA-MEM-INPUTS", says="lora_magnitude was modified in place", source="a magnitude normalised in place")
class RoundsTheMagnitudeInPlace(Layer):
    def dora(self, x: Tensor) -> Tensor:
        y = super().dora(x)
        self.lora_magnitude.data.mul_(1 + 2.0**-5)
        return y


@twin("DORA-MEM-LATER", says="worst    y", source="a reused output buffer")
class ReturnsItsBuffer(Layer):
    def dora(self, x: Tensor) -> Tensor:
        y = super().dora(x)
        if not hasattr(self, "buffer") or self.buffer.shape != y.shape:
            self.buffer = torch.empty_like(y.data)
        y.data = self.buffer.copy_(y.data)
        return y


@twin(
    "DORA-MEM-REFILL",
    says="(a stale cache)",
    phrase="caches the norm for good",
    source="a norm cached while the adapter is trained",
)
class KeepsTheNorm(Layer):
    def row_norm(self, weight: Tensor) -> Tensor:
        if not hasattr(self, "lora_magnitude"):
            return super().row_norm(weight)
        if not hasattr(self, "norm"):
            self.norm = super().row_norm(weight)
        return self.norm


@twin(
    "DORA-MEM-REFILL",
    says="(a stale cache, whose key leaves out weight)",
    phrase="caches the norm with a key that leaves operands out",
    source="a norm cached by the version of A, with A frozen",
)
class KeepsTheNormByA(Layer):
    def factor(self) -> Tensor:
        a = self.lora_A.weight
        key = (id(a), a._version)
        if getattr(self, "key", None) != key:
            wide = torch.promote_types(a.dtype, torch.float32)
            change = self.scale * self.lora_B.weight.detach().to(wide) @ a.detach().to(wide)
            self.key, self.norm = key, self.row_norm(self.weight.to(wide) + change)
        return self.lora_magnitude.to(self.norm.dtype) / self.norm


@twin(
    "DORA-MEM-REFILL",
    says="worst",
    phrase="caches the factor by W, A and B, without the magnitude",
    source="m′ cached by the versions of the operands of the norm",
)
class KeepsTheFactor(Layer):
    def factor(self) -> Tensor:
        key = tuple((id(t), t._version) for t in (self.weight, self.lora_A.weight, self.lora_B.weight))
        if getattr(self, "key", None) != key:
            self.key, self.kept = key, super().factor().detach()
        own = super().factor()
        return self.kept + own - own.detach()


@twin("DORA-DET-REPEAT", says="y differs between two identical runs", source="atomic accumulation")
class SumsInRandomOrder(Layer):
    calls = 0

    @classmethod
    def reset(cls) -> None:
        cls.calls = 0

    def dora(self, x: Tensor) -> Tensor:
        type(self).calls += 1
        return super().dora(x) * (1 + 2.0**-6 * (type(self).calls % 2))


@twin("DORA-SIDE-GLOBAL", says="the forward pass changed torch's random state")
class DrawsWithoutDropout(Layer):
    def dropped(self, x: Tensor) -> Tensor:
        return torch.nn.functional.dropout(x, self.dropout, self.training)

    def dora(self, x: Tensor) -> Tensor:
        torch.rand(1)
        return super().dora(x)
