"""Known-bad twins of the lives of a layer that an autocast region outlasts, or reaches too far."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.baselines.life import LivedLayer, LivedNode
from tests.known_bad.life.registration import twin


@twin("LIFE-LAYER-FWD", says="y after", source="casts kept for autocast, and changed weights", dtypes=("float32",))
class KeepsTheCastsOfAutocast(LivedLayer):
    def operands(self) -> Any:
        W, bias, A, B, scale = super().operands()
        if not torch.is_autocast_enabled("cpu"):
            return W, bias, A, B, scale
        if self.kept is None or torch.is_grad_enabled():
            self.kept = A.detach().bfloat16(), B.detach().bfloat16()
        return (W, bias, A, B, scale) if torch.is_grad_enabled() else (W, bias, *self.kept, scale)


@twin("LIFE-LAYER-FWD", says="dtype", source="a layer that is converted on entry and not back", dtypes=("float32",))
class StaysLowAfterAutocast(LivedLayer):
    def forward(self, x: Tensor) -> Tensor:
        self.kept = self.kept or torch.is_autocast_enabled("cpu")
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bool(self.kept)):
            return super().forward(x)


@twin("LIFE-LAYER-FWD", says="autocast-off", source="the dtype of a region, not whether it is on", dtypes=("float32",))
class IgnoresARegionThatTurnsAutocastOff(LivedLayer):
    def forward(self, x: Tensor) -> Tensor:
        entered = torch.is_autocast_enabled("cpu")
        self.kept = entered or (self.kept and torch.is_autocast_cache_enabled() and _nested())
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bool(self.kept)):
            return super().forward(x)


def _nested() -> bool:
    depth = torch.autocast_increment_nesting() - 1
    torch.autocast_decrement_nesting()
    return depth > 0


@twin("LIFE-LAYER-STATE", says="weight after merge", source="merge() inside a region of autocast", dtypes=("float32",))
class MergesInTheDtypeOfAutocast(LivedLayer):
    @torch.no_grad()
    def merge(self) -> None:
        if not self.merged:
            self.unmerged_weight = self.weight.detach().clone()
            self.weight += self.delta()


@twin("LIFE-LAYER-BWD", says="raised RuntimeError", source="backward outside the region of its forward")
class NeedsTheRegionInBackward(LivedLayer):
    class Node(LivedNode):
        @classmethod
        def backward(cls, ctx: Any, g: Tensor) -> Any:
            return super().backward(ctx, g)

    def adapted(self, x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scale: float) -> Tensor:
        if torch.is_autocast_enabled("cpu"):
            return _NeedsOneDtype.apply(super().adapted(x, weight, bias, A, B, scale), A)
        return super().adapted(x, weight, bias, A, B, scale)


class _NeedsOneDtype(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, A: Tensor) -> Tensor:
        ctx.save_for_backward(A)
        return y.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (A,) = ctx.saved_tensors
        torch.mm(g.new_ones(1, A.shape[0]), A)
        return g, None


@twin("LIFE-LAYER-FWD", says="y after", source="unslothai/unsloth #5766: casts kept from another compute dtype")
class KeepsTheCastsOfItsFirstComputeDtype(LivedLayer):
    def update(self, x: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
        if torch.is_grad_enabled():
            return super().update(x, A, B, scale)
        key = id(A), id(B), A._version, B._version
        if self.kept is None or self.kept[0] != key:
            dtype = torch.bfloat16 if torch.is_autocast_enabled("cpu") else x.dtype
            self.kept = key, A.to(dtype), B.to(dtype)
        return super().update(x, *(t.to(x.dtype) for t in self.kept[1:]), scale)
