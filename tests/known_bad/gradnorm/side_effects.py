"""Known-bad twins of side effects: a call changes more than the gradients, or is not deterministic."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.baselines.gradnorm import Right
from tests.known_bad import breaks


@breaks("GRN-SIDE-GLOBAL", says="clip_grad_norm_ changed deterministic algorithms")
class SetsDeterminism(Right):
    def norm(self, gradients: list[Tensor]) -> Tensor:
        torch.set_deterministic_debug_mode(1)
        return super().norm(gradients)


@breaks("GRN-LATER", says="worst    the norm of 1 g", source="a workspace shared by all norms")
class ReturnsItsWorkspace(Right):
    def returned(self, norm: Tensor, gradients: list[Tensor]) -> Any:
        value = super().returned(norm, gradients)
        if not hasattr(self, "workspace"):
            self.workspace: dict[torch.dtype, Tensor] = {}
        return self.workspace.setdefault(value.dtype, torch.empty_like(value)).copy_(value)


@breaks("GRN-MARGINS", says="memory beside gradient")
class ScalesTheWholeBuffer(Right):
    def store(self, parameter, gradient):
        span = sum((n - 1) * s for n, s in zip(gradient.shape, parameter.grad.stride(), strict=True)) + 1
        whole = parameter.grad.as_strided((span,), (1,))
        whole *= 0.5
        super().store(parameter, gradient)


@breaks("GRN-INPLACE", says="another gradient tensor")
class AssignsANewGradient(Right):
    def store(self, parameter, gradient):
        parameter.grad = gradient


@breaks("GRN-INPLACE", says="moved in memory")
class AssignsNewMemory(Right):
    def store(self, parameter, gradient):
        parameter.grad.data = gradient


@breaks("GRN-PARAMETERS", says="modified a parameter")
class ScalesTheParameterToo(Right):
    def store(self, parameter, gradient):
        super().store(parameter, gradient)
        parameter.data.mul_(0.5)


@breaks("GRN-PARAMETERS", says="no longer requires grad")
class FreezesWhatItClips(Right):
    def store(self, parameter, gradient):
        super().store(parameter, gradient)
        parameter.requires_grad_(False)


@breaks("GRN-ITERABLE", says="differs from that of a list")
class ReadsAGeneratorTwice(Right):
    def clip_grad_norm_(self, parameters, max_norm, error_if_nonfinite=False):
        norm = self.grad_norm(parameters)
        super().clip_grad_norm_(parameters, max_norm, error_if_nonfinite)
        return norm


@breaks("GRN-ITERABLE", says="raised")
class NeedsAList(Right):
    def chosen(self, parameters):
        return super().chosen(parameters[: len(parameters)])


@breaks("GRN-REPEAT", says="two identical calls")
class AddsInRandomOrder(Right):
    def returned(self, norm, gradients):
        return super().returned(norm * (1 + 1e-6 * torch.rand(())), gradients)
