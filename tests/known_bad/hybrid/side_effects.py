"""Known-bad twins of side effects: `CustomLinear` changes its input, keeps its output, or draws random numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.baselines.hybrid import Right
from tests.known_bad import breaks
from tests.known_bad.hybrid.kept_result import Kept


@breaks("HYB-MEM-LATER", says="worst    y", source="a reused receive buffer")
class AnswersFromOneBuffer(Right):
    def reset(self) -> None:
        self.buffers: dict[Any, Tensor] = {}

    def forward_product(self, x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
        if not hasattr(self, "buffers"):
            self.reset()
        y = super().forward_product(x, weight, bias, transposed)
        y.data = self.buffers.setdefault((y.shape, y.dtype), torch.empty_like(y.data)).copy_(y.data)
        return y


@breaks("HYB-MEM-REFILL", says="worst    y", source="results cached by data pointer")
class RemembersByAddress(Right):
    def reset(self) -> None:
        self.known: dict[Any, tuple[Any, Tensor]] = {}

    def forward_product(self, x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
        if not hasattr(self, "known"):
            self.reset()
        key = (x.data_ptr(), x.shape, x.stride(), x.dtype, weight.data_ptr(), bias is None)
        if key not in self.known:  # keeping the sources alive prevents reuse of their addresses
            self.known[key] = (x, weight, bias), super().forward_product(x, weight, bias, transposed)
        return self.known[key][1].clone()


@breaks("HYB-MEM-REFILL", says="worst    y", phrase="caches y by x and the weight", source="a key without the bias")
class RemembersWithoutTheBias(Right):
    def forward_product(self, x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
        key = x.data_ptr(), x._version, x.shape, x.dtype, weight._version
        if getattr(weight, "known", (None,))[0] != key:
            weight.known = key, super().forward_product(x, weight, bias, transposed)  # type: ignore[attr-defined]
        return weight.known[1].clone()  # type: ignore[attr-defined,no-any-return]


@breaks("HYB-SIDE-GLOBAL", says="the backward pass changed torch's random state")
class SeedsItsNoise(Right):
    def backward_product(self, g: Tensor, weight: Tensor, transposed: bool) -> Tensor:
        torch.manual_seed(1)
        return super().backward_product(g, weight, transposed)


@breaks("HYB-INPUTS", says="x was modified in place", source="unslothai/unsloth c3d6def64a (AL1)")
class WritesDXOverX(Right):
    def run_forward(self, ctx, x, there):
        ctx.x = x.detach()
        return super().run_forward(ctx, x, there)

    def run_backward(self, ctx, g):
        d_x = super().run_backward(ctx, g)
        if 0 not in ctx.x.stride():
            ctx.x.copy_(d_x)
        return d_x


@breaks("HYB-INPUTS", says="memory around")
class WritesPastTheEndOfX(Right):
    def run_forward(self, ctx, x, there):
        x.detach().as_strided((1,), (1,), x.storage_offset() - 1).fill_(7)
        return super().run_forward(ctx, x, there)


@breaks("HYB-OUTPUT", says="raised RuntimeError")
class ReturnsAView(Right):
    def run_forward(self, ctx, x, there):
        return super().run_forward(ctx, x, there).view(-1).view(*x.shape[:-1], -1)


@breaks("HYB-OUTPUT", says="raised RuntimeError")
class KeepsItsOutputForBackward(Right):
    def layer_forward(self, layer, x):
        return Kept.apply(super().layer_forward(layer, x))


@breaks("HYB-CHANGED", says="returned")
class DoesNotNoticeANewWeight(Right):
    def BackwardModuleLinear(self, weight, weight_transposed=False):
        return super().BackwardModuleLinear(weight.data, weight_transposed)


@breaks("HYB-REPEAT", says="differs between two identical runs")
class AddsNoise(Right):
    def run_forward(self, ctx, x, there):
        y = super().run_forward(ctx, x, there)
        return y * (1 + 0.02 * torch.rand(y.shape, dtype=y.dtype))
