"""Known-bad twins of side effects beyond the plain layer: DoRA, hybrid modules, gradient norms, training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.baselines import gradnorm, hybrid
from tests.baselines.layer import Layer
from tests.baselines.training import Step, step_breaks
from tests.known_bad import breaks
from tests.known_bad.dora import twin

HYBRID = ("hybrid",)
GRADNORM = ("gradnorm",)


@twin("DORA-MEM-INPUTS", says="lora_magnitude was modified in place", source="a magnitude normalised in place")
class RoundsTheMagnitudeInPlace(Layer):
    def dora(self, x: Tensor) -> Tensor:
        y = super().dora(x)
        self.lora_magnitude.data.mul_(1 + 2.0**-5)
        return y


@twin("DORA-MEM-LATER", says="worst    y", source="an output buffer that is used again")
class ReturnsItsBuffer(Layer):
    def dora(self, x: Tensor) -> Tensor:
        y = super().dora(x)
        if not hasattr(self, "buffer") or self.buffer.shape != y.shape:
            self.buffer = torch.empty_like(y.data)
        y.data = self.buffer.copy_(y.data)
        return y


@twin("DORA-MEM-REFILL", says="worst    y", source="a norm that is kept while the adapter is trained")
class KeepsTheNorm(Layer):
    def row_norm(self, weight: Tensor) -> Tensor:
        if not hasattr(self, "lora_magnitude"):
            return super().row_norm(weight)
        if not hasattr(self, "norm"):
            self.norm = super().row_norm(weight)
        return self.norm


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


@breaks("HYB-MEM-LATER", says="worst    y", groups=HYBRID, source="a receive buffer that is used again")
class AnswersFromOneBuffer(hybrid.Right):
    def reset(self) -> None:
        self.buffers: dict[Any, Tensor] = {}

    def forward_product(self, x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
        if not hasattr(self, "buffers"):
            self.reset()
        y = super().forward_product(x, weight, bias, transposed)
        y.data = self.buffers.setdefault((y.shape, y.dtype), torch.empty_like(y.data)).copy_(y.data)
        return y


@breaks("HYB-MEM-REFILL", says="worst    y", groups=HYBRID, source="results cached by data pointer")
class RemembersByAddress(hybrid.Right):
    def reset(self) -> None:
        self.known: dict[Any, tuple[Any, Tensor]] = {}

    def forward_product(self, x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
        if not hasattr(self, "known"):
            self.reset()
        key = (x.data_ptr(), x.shape, x.stride(), x.dtype, weight.data_ptr(), bias is None)
        if key not in self.known:  # what it was computed from is held, so that no other gets the address
            self.known[key] = (x, weight, bias), super().forward_product(x, weight, bias, transposed)
        return self.known[key][1].clone()


@breaks("HYB-SIDE-GLOBAL", says="the backward pass changed torch's random state", groups=HYBRID)
class SeedsItsNoise(hybrid.Right):
    def backward_product(self, g: Tensor, weight: Tensor, transposed: bool) -> Tensor:
        torch.manual_seed(1)
        return super().backward_product(g, weight, transposed)


@breaks("GRN-SIDE-GLOBAL", says="clip_grad_norm_ changed deterministic algorithms", groups=GRADNORM)
class SetsDeterminism(gradnorm.Right):
    def norm(self, gradients: list[Tensor]) -> Tensor:
        torch.set_deterministic_debug_mode(1)
        return super().norm(gradients)


@breaks("GRN-LATER", says="worst    the norm of 1 g", groups=GRADNORM, source="one workspace for every norm")
class ReturnsItsWorkspace(gradnorm.Right):
    def returned(self, norm: Tensor, gradients: list[Tensor]) -> Any:
        value = super().returned(norm, gradients)
        if not hasattr(self, "workspace"):
            self.workspace: dict[torch.dtype, Tensor] = {}
        return self.workspace.setdefault(value.dtype, torch.empty_like(value)).copy_(value)


@step_breaks("TRN-SIDE-GLOBAL", says="a call changed grad mode from True to False")
class LeavesGradModeOff(Step):
    def finish(self) -> None:
        super().finish()
        torch.set_grad_enabled(False)
