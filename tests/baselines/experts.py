"""A right `lora_grouped_linear`, split into small methods; twins and correct variants override one of them."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn


class Right:
    """A target for the functions of the group `experts`; every formula is one small method on the rows of one expert.

    An expert p is a namespace of weight, bias, A, B and scale; weight is None without a base.
    """

    def base(self, x: Tensor, p: Any) -> Tensor:
        """`x Wᵀ + b`."""
        return nn.functional.linear(x, p.weight, p.bias)

    def middle(self, x: Tensor, p: Any) -> Tensor:
        """`S = x Aᵀ`."""
        return x.to(p.A.dtype) @ p.A.T

    def expand(self, S: Tensor, p: Any) -> Tensor:
        """`s·S Bᵀ`."""
        return (S * p.scale) @ p.B.T

    def output(self, x: Tensor, p: Any, mask: Any) -> Tensor:
        """The rows of one expert, in x's dtype."""
        pre, post = mask
        update = dropped(self.expand(self.middle(dropped(x, pre), p), p), post)
        return update.to(x.dtype) if p.weight is None else self.base(x, p) + update.to(x.dtype)

    def back(self, g: Tensor, p: Any, mask: Any) -> Tensor:
        """`g W + s·(g B) A`."""
        pre, post = mask
        wide = dropped(g.to(p.A.dtype), post)
        update = dropped((wide @ p.B) @ p.A * p.scale, pre).to(g.dtype)
        return update if p.weight is None else g @ p.weight + update

    def d_A(self, g: Tensor, x: Tensor, p: Any) -> Tensor:
        """`s·(g B)ᵀ x`."""
        return (g.to(p.A.dtype) @ p.B).T @ x.to(p.A.dtype) * p.scale

    def d_B(self, g: Tensor, x: Tensor, p: Any) -> Tensor:
        """`s·gᵀ (x Aᵀ)`."""
        return g.to(p.A.dtype).T @ self.middle(x, p) * p.scale

    def d_weight(self, c: Any, g: Tensor, x: Tensor) -> Tensor | None:
        """None: the weights are frozen."""
        return None

    def routed(self, index: Tensor, experts: int) -> list[Tensor]:
        """The numbers of each expert's rows."""
        return [(index == e).nonzero().flatten() for e in range(experts)]

    def routed_sorted(self, offsets: Tensor, rows: int) -> list[Tensor]:
        """The numbers of each expert's rows, from their ends."""
        ends = [0, *offsets.tolist()]
        return [torch.arange(start, end) for start, end in itertools.pairwise(ends)]

    def blank(self, rows: int, width: int, like: Tensor) -> Tensor:
        """The result before any expert has written its rows."""
        return like.new_zeros(rows, width)

    def idle(self, like: Tensor) -> Tensor:
        """A gradient before any expert has written its part."""
        return torch.zeros_like(like)

    def masks(self, x: Tensor, width: int, p: float, position: str, own: list[Tensor]) -> tuple[Any, Any]:
        """The masks before and after the adapter, for all rows: 0 or 1/(1-p), or None."""
        if not p:
            return None, None
        pre = position == "pre"
        shape = (len(x), x.shape[1] if pre else width)
        kept = torch.rand(shape) >= p
        mask = kept.to(x.dtype) * (0.0 if p == 1 else 1 / (1 - p))
        return (mask, None) if pre else (None, mask)

    def expert(self, c: Any, e: int) -> Any:
        """The operands of one expert."""
        weight, bias = (None if t is None else t[e] for t in (c.weight, c.bias))
        return SimpleNamespace(weight=weight, bias=bias, A=c.A[e], B=c.B[e], scale=c.scale)

    def forward_rows(self, c: Any) -> Tensor:
        """The output of all rows."""
        y = self.blank(len(c.x), c.B.shape[1], c.x)
        for e, own in enumerate(c.own):
            y[own] = self.output(c.x[own], self.expert(c, e), masked(c.mask, own))
        return y

    def backward_rows(self, c: Any, g: Tensor) -> tuple[Any, Any, Any]:
        """dX, dA and dB."""
        dx, dA, dB = self.blank(*c.x.shape, c.x), self.idle(c.A), self.idle(c.B)
        for e, own in enumerate(c.own):
            if not len(own):
                continue
            p, mask, x = self.expert(c, e), masked(c.mask, own), c.x[own]
            dx[own] = self.back(g[own], p, mask)
            dA[e] = self.d_A(dropped(g[own], mask[1]), dropped(x, mask[0]), p)
            dB[e] = self.d_B(dropped(g[own], mask[1]), dropped(x, mask[0]), p)
        return dx, dA, dB

    def refuse(self, x: Tensor, weight: Any, bias: Any, A: Tensor, B: Tensor) -> None:
        """Raise if the operands do not chain."""
        if len({len(t) for t in (weight, bias, A, B) if t is not None}) != 1:
            raise ValueError("the operands have different numbers of experts")
        if A.shape[2] != x.shape[-1] or A.shape[1] != B.shape[2]:
            raise ValueError(f"{list(A.shape)} and {list(B.shape)} do not chain with {list(x.shape)}")
        if weight is not None and weight.shape[1:] != (B.shape[1], x.shape[-1]):
            raise ValueError(f"{list(weight.shape)} does not chain with {list(B.shape)}")

    def refuse_index(self, x: Tensor, index: Tensor) -> None:
        """Raise if there is no integer for each row."""
        if index.dtype not in (torch.int32, torch.int64) or index.shape != x.shape[:-1]:
            raise ValueError(f"the index is {list(index.shape)} of {index.dtype}")

    def refuse_offsets(self, x: Tensor, offsets: Tensor, experts: int) -> None:
        """Raise if the offsets are not the ends of consecutive rows."""
        ends = [0, *offsets.tolist()]
        if offsets.dtype not in (torch.int32, torch.int64) or len(offsets) != experts:
            raise ValueError(f"the offsets are {list(offsets.shape)} of {offsets.dtype}")
        if ends != sorted(ends) or ends[-1] > len(x):
            raise ValueError(f"the offsets are {ends[1:]}")

    def lora_grouped_linear(
        self,
        x,
        expert_index,
        weight,
        bias,
        lora_A,
        lora_B,
        scale,
        *,
        dropout=0.0,
        dropout_position="post",
        training=False,
    ):
        self.refuse(x, weight, bias, lora_A, lora_B)
        self.refuse_index(x, expert_index)
        own = self.routed(expert_index.reshape(-1), len(lora_A))
        drop = (dropout if training else 0.0, dropout_position)
        return self.call(x, own, weight, bias, lora_A, lora_B, scale, drop)

    def lora_grouped_linear_sorted(
        self, x, offsets, weight, bias, lora_A, lora_B, scale, *, dropout=0.0, dropout_position="post", training=False
    ):
        self.refuse(x, weight, bias, lora_A, lora_B)
        self.refuse_offsets(x, offsets, len(lora_A))
        own = self.routed_sorted(offsets, len(x))
        drop = (dropout if training else 0.0, dropout_position)
        return self.call(x, own, weight, bias, lora_A, lora_B, scale, drop)

    def call(
        self, x: Tensor, own: list[Tensor], weight: Any, bias: Any, A: Tensor, B: Tensor, scale: float, drop: Any
    ) -> Tensor:
        """Run one call on an x of any leading dimensions, as one autograd node."""
        if torch.is_autocast_enabled(x.device.type):
            kind = torch.get_autocast_dtype(x.device.type)
            x, weight, bias, A, B = (None if t is None else t.to(kind) for t in (x, weight, bias, A, B))
        rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
        with torch.autocast(x.device.type, enabled=False):
            y = self.node.apply(self, own, scale, drop, rows, weight, bias, A, B)
        return y.reshape(*x.shape[:-1], B.shape[1])

    @property
    def node(self) -> Any:
        """The autograd function that `call` applies."""
        return Call


class Call(torch.autograd.Function):
    """One differentiable call of a `Right`, on a matrix of rows."""

    @staticmethod
    def forward(
        ctx: Any, right: Right, own: Any, scale: float, drop: Any, x: Tensor, W: Any, b: Any, A: Tensor, B: Tensor
    ) -> Tensor:
        mask = right.masks(x, B.shape[1], *drop, own)
        ctx.save_for_backward(x, W, b, A, B)
        ctx.right, ctx.own, ctx.scale, ctx.mask = right, own, scale, mask
        named = SimpleNamespace(x=x, weight=W, bias=b, A=A, B=B, own=own, scale=scale, mask=mask)
        return right.forward_rows(named)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        return gradients(ctx, g)


def gradients(ctx: Any, g: Tensor) -> Any:
    """Return the gradients that `Call.backward` returns."""
    x, W, b, A, B = ctx.saved_tensors
    c = SimpleNamespace(x=x, weight=W, bias=b, A=A, B=B, own=ctx.own, scale=ctx.scale, mask=ctx.mask)
    dx, dA, dB = ctx.right.backward_rows(c, g)
    return None, None, None, None, dx, ctx.right.d_weight(c, g, x), None, dA, dB


def dropped(t: Tensor, mask: Tensor | None) -> Tensor:
    """The tensor with a mask, where zeros drop."""
    return t if mask is None else torch.where(mask == 0, 0.0, t * mask.to(t.dtype)).to(t.dtype)


def masked(mask: Any, own: Tensor) -> tuple[Any, Any]:
    """The masks of some rows."""
    return tuple(None if part is None else part[own] for part in mask)  # type: ignore[return-value]
