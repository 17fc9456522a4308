"""Known-bad twins of norm: the norm is wrong, overflows, or counts the wrong gradients."""

from __future__ import annotations

import numpy as np
import torch

from tests.baselines.gradnorm import Right
from tests.known_bad import breaks


@breaks("GRN-NORM", says="error ÷ budget")
class AddsTheNormsOfTheTensors(Right):
    def norm(self, gradients):
        return sum((Right.norm(self, [g]) for g in gradients), torch.zeros(()).double())


@breaks("GRN-NORM", says="error ÷ budget")
class LeavesOutTheLastTensor(Right):
    def norm(self, gradients):
        return super().norm(gradients[:-1] or gradients)


@breaks("GRN-NORM", says="error ÷ budget")
class ReturnsTheSquareOfTheNorm(Right):
    def returned(self, norm, gradients):
        return super().returned(norm**2, gradients)


@breaks("GRN-NORM", says="got 0")
class ReturnsZero(Right):
    def returned(self, norm, gradients):
        return super().returned(norm * 0, gradients)


@breaks("GRN-NORM", says="error ÷ budget")
class TakesTheLargestElement(Right):
    def norm(self, gradients):
        return max((g.abs().max().double() for g in gradients), default=torch.zeros(()).double())


@breaks("GRN-NORM-LARGE", says="error ÷ budget")
class AddsOneByOneInFloat32(Right):
    def norm(self, gradients):
        if not gradients or not all(torch.isfinite(g).all() for g in gradients):
            return super().norm(gradients)
        squares = [np.cumsum(g.float().square().numpy(), dtype=np.float32)[-1].item() for g in gradients]
        return torch.tensor(sum(squares)).double().sqrt()


@breaks("GRN-NORM-LARGE", says="error ÷ budget")
class SeesTheFirst65536Elements(Right):
    def norm(self, gradients):
        return super().norm([g.flatten()[: 2**16] for g in gradients])


@breaks(
    "GRN-NORM-ULP",
    says="error ÷ budget",
    source="torch.nn.utils.clip_grad_norm_: error 4e-4 on 2^20 equal values",
)
class LosesAPartIn3000(Right):
    def norm(self, gradients):
        return super().norm(gradients) * (1 + 3e-4)


@breaks("GRN-RANGE", says="got inf", source="NVIDIA-NeMo/Automodel f85d2ba86 (#3136)")
class SquaresInFloat32(Right):
    def norm(self, gradients):
        return sum((g.float().square().sum() for g in gradients), torch.zeros(())).sqrt().double()


@breaks("GRN-RANGE", says="got 0")
class FlushesSmallSquares(Right):
    def norm(self, gradients):
        norm = super().norm(gradients)
        return norm if norm > 1e-19 else norm * 0


@breaks("GRN-WIDE", says="error ÷ budget", dtypes=("bfloat16", "float16"))
class SquaresInTheGradientsDtype(Right):
    def norm(self, gradients):
        squares = [g.square().flatten().double().sum() for g in gradients]
        return torch.stack(squares).sum().sqrt() if squares else super().norm(gradients)


@breaks("GRN-WIDE", says="error ÷ budget", dtypes=("bfloat16", "float16"))
class SumsInTheGradientsDtype(Right):
    def norm(self, gradients):
        if not gradients or gradients[0].dtype.itemsize > 2:
            return super().norm(gradients)
        return (
            torch.stack([g.flatten().cumsum(0)[-1] for g in [(g.float() ** 2).to(g.dtype) for g in gradients]])
            .double()
            .sum()
            .sqrt()
        )


@breaks("GRN-DTYPE", says="dtype torch.bfloat16", dtypes=("bfloat16",))
class ReturnsTheGradientsDtype(Right):
    def returned(self, norm, gradients):
        return norm.to(gradients[0].dtype if gradients else torch.float32)


@breaks("GRN-DTYPE", says="is a float")
class ReturnsAPythonNumber(Right):
    def returned(self, norm, _gradients):
        return norm.item()


@breaks("GRN-DTYPE", says="has shape [1]")
class ReturnsAVector(Right):
    def returned(self, norm, gradients):
        return super().returned(norm, gradients).reshape(1)


@breaks("GRN-SKIP", says="raised")
class StumblesOverMissingGradients(Right):
    def chosen(self, parameters):
        return [p for p in parameters if p.grad.numel()]


@breaks("GRN-SKIP", says="raised")
class StumblesOverEmptyGradients(Right):
    def chosen(self, parameters):
        return list({id(p): p for p in parameters if p.grad is not None}.values())


@breaks("GRN-SKIP", says="had no gradient before")
class MakesUpMissingGradients(Right):
    def chosen(self, parameters):
        listed = list(parameters)
        for p in listed:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        return super().chosen(listed)


@breaks("GRN-NOTHING", says="raised")
class NeedsAGradient(Right):
    def norm(self, gradients):
        return torch.stack([super(NeedsAGradient, self).norm([g]) for g in gradients]).square().sum().sqrt()


@breaks("GRN-NOTHING", says="is None")
class ReturnsNothingForNothing(Right):
    def returned(self, norm, gradients):
        return super().returned(norm, gradients) if gradients else None


@breaks("GRN-ZERO", says="NaN")
class DividesByTheLargest(Right):
    def norm(self, gradients):
        largest = max((g.abs().max().double() for g in gradients), default=torch.ones(()).double())
        return (
            largest * sum(((g.double() / largest) ** 2).sum() for g in gradients) ** 0.5 if gradients else largest * 0
        )


@breaks("GRN-SHARED", says="error ÷ budget", source="torch.nn.utils.clip_grad_norm_")
class CountsTiedParametersTwice(Right):
    def chosen(self, parameters):
        return [p for p in parameters if p.grad is not None and p.grad.numel()]


@breaks("GRN-FUNCTION", says="modified gradient")
class ClipsWhileItMeasures(Right):
    def grad_norm(self, parameters):
        return self.clip_grad_norm_(parameters, 1e-3)


@breaks("GRN-FUNCTION", says="error ÷ budget")
class MeasuresTheSquare(Right):
    def grad_norm(self, parameters):
        return super().grad_norm(parameters) ** 2
