"""Known-bad twins of gradients that are to be differentiated themselves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.baselines.linear import Right
from tests.known_bad import both

EXACT = ("float64", "float32")


class PretendsToBeLinear(torch.autograd.Function):
    """The given output, whose gradients are right once and constants when differentiated again."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, lora_A: Tensor, lora_B: Tensor) -> Tensor:
        ctx.save_for_backward(x, lora_A, lora_B)
        return y.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        x, lora_A, lora_B = ctx.saved_tensors
        # something that autograd can follow, and that is no second derivative of the layer
        return g, 0 * x * x.sum(), 0 * lora_A * lora_A.sum(), 0 * lora_B * lora_B.sum()


@both("BWD-DOUBLE", says="second derivative", dtypes=EXACT, source="a backward that detaches")
class ForgetsSecondDerivatives(Right):
    def lora_linear(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        return PretendsToBeLinear.apply(super().lora_linear(x, *args, **options), x, *args[2:4])


class HalvesUnderAGraph(torch.autograd.Function):
    """The identity, whose gradient is halved where it is to be differentiated again."""

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        return y.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return g / 2 if torch.is_grad_enabled() else g


@both("BWD-GRAPH", says="constant ratio 0.5", dtypes=EXACT, source="a second path for create_graph=True")
class HasAnotherPathUnderAGraph(Right):
    def lora_linear(self, *args: Any, **options: Any) -> Tensor:
        return HalvesUnderAGraph.apply(super().lora_linear(*args, **options))  # type: ignore[no-any-return]


class DrawsUnderAGraph(torch.autograd.Function):
    """The identity, whose gradient is dropped out anew where it is to be differentiated again."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, p: float) -> Tensor:
        ctx.p = p
        return y.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return torch.nn.functional.dropout(g, ctx.p) if torch.is_grad_enabled() else g, None


@both("BWD-GRAPH", says="with create_graph", dtypes=EXACT, source="a mask drawn again instead of kept")
class DropsOutAnewUnderAGraph(Right):
    def lora_linear(self, *args: Any, **options: Any) -> Tensor:
        y = super().lora_linear(*args, **options)
        return DrawsUnderAGraph.apply(y, options.get("dropout", 0.0))  # type: ignore[no-any-return]
