"""A right `lora_batched_linear`, `lora_shrink` and `lora_expand` in small methods; twins override one of them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from reference.batch_checks import check_batch, check_ranks, check_rows, check_scale, check_segments


class Right:
    """A target for the group `batched`; formulas work on matrices x [M, K], g [M, N] and the rows of one adapter."""

    def base(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """`x Wᵀ + b`."""
        return torch.nn.functional.linear(x, weight, bias)

    def rows(self, index: Tensor, adapter: int) -> Tensor:
        """The numbers of the rows that have an adapter."""
        return (index == adapter).nonzero()[:, 0]

    def used(self, index: Tensor, count: int) -> list[int]:
        """The adapters that are looped over."""
        return list(range(count))

    def rank(self, ranks: Tensor | None, adapter: int, most: int) -> int:
        """The rank of an adapter."""
        return most if ranks is None else int(ranks[adapter])

    def factor(self, scale: Tensor, adapter: int) -> Any:
        """The scale of an adapter."""
        return scale[adapter]

    def middle(self, x: Tensor, A: Tensor) -> Tensor:
        """`S = x Aᵀ`."""
        return x.to(A.dtype) @ A.T

    def update(self, x: Tensor, A: Tensor, B: Tensor, s: Any) -> Tensor:
        """`s·(x Aᵀ) Bᵀ`."""
        return self.middle(x, A) @ B.T * s

    def added(self, y: Tensor, rows: Tensor, update: Tensor) -> Tensor:
        """y with the update added to some rows."""
        return y.index_add(0, rows, update.to(y.dtype))

    def forward(self, x: Tensor, index: Tensor, weight: Tensor, bias: Any, A: Tensor, B: Tensor, *rest: Any) -> Tensor:
        """y as a matrix; the rest is scale and ranks."""
        scale, ranks = rest
        y = self.base(x, weight, bias)
        for adapter in self.used(index, len(A)):
            rows, r = self.rows(index, adapter), self.rank(ranks, adapter, A.shape[1])
            update = self.update(x[rows], A[adapter, :r], B[adapter, :, :r], self.factor(scale, adapter))
            y = self.added(y, rows, update)
        return y

    def back(self, g: Tensor, weight: Tensor) -> Tensor:
        """`g W`."""
        return g @ weight

    def back_update(self, g: Tensor, A: Tensor, B: Tensor, s: Any) -> Tensor:
        """`s·(g B) A`."""
        return (g.to(A.dtype) @ B) @ A * s

    def d_A(self, g: Tensor, x: Tensor, B: Tensor, s: Any) -> Tensor:
        """`s·(g B)ᵀ x`."""
        return (g.to(B.dtype) @ B).T @ x.to(B.dtype) * s

    def d_B(self, g: Tensor, x: Tensor, A: Tensor, s: Any) -> Tensor:
        """`s·gᵀ (x Aᵀ)`."""
        return g.to(A.dtype).T @ self.middle(x, A) * s

    def d_weight(self, g: Tensor, x: Tensor) -> Tensor | None:
        """None: the weight is frozen."""
        return None

    def empty(self, like: Tensor) -> Tensor:
        """The memory into which the gradients of adapters are written."""
        return torch.zeros_like(like, memory_format=torch.contiguous_format)

    def backward(self, g: Tensor, x: Tensor, index: Tensor, weight: Tensor, A: Tensor, B: Tensor, *rest: Any) -> Any:
        """dX, dA and dB."""
        scale, ranks = rest
        d_x, d_A, d_B = self.back(g, weight), self.empty(A), self.empty(B)
        for adapter in self.used(index, len(A)):
            rows, r = self.rows(index, adapter), self.rank(ranks, adapter, A.shape[1])
            a, b, s = A[adapter, :r], B[adapter, :, :r], self.factor(scale, adapter)
            d_x = self.added(d_x, rows, self.back_update(g[rows], a, b, s))
            d_A[adapter, :r] = self.d_A(g[rows], x[rows], b, s)
            d_B[adapter, :, :r] = self.d_B(g[rows], x[rows], a, s)
        return d_x, d_A, d_B

    def refuse(self, *operands: Any) -> None:
        """Raise if the operands do not fit."""
        check_batch(*operands)

    def lora_batched_linear(
        self,
        x: Tensor,
        adapter_index: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        lora_A: Tensor,
        lora_B: Tensor,
        scale: Tensor,
        *,
        ranks: Tensor | None = None,
    ) -> Tensor:
        self.refuse(x, adapter_index, weight, bias, lora_A, lora_B, scale, ranks)
        if torch.is_autocast_enabled(x.device.type):
            kind = torch.get_autocast_dtype(x.device.type)
            x, weight, lora_A, lora_B = (t.to(kind) for t in (x, weight, lora_A, lora_B))
            bias = None if bias is None else bias.to(kind)
        matrix = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
        with torch.autocast(x.device.type, enabled=False):
            operands = (matrix, adapter_index.reshape(-1), weight, bias, lora_A, lora_B, scale, ranks)
            y = self.node.apply(self, *operands)
        return y.reshape(*x.shape[:-1], y.shape[-1])

    @property
    def node(self) -> Any:
        """The autograd function that a call applies."""
        return Call

    def pieces(self, ends: Tensor, adapters: Tensor) -> list[tuple[int, int, int]]:
        """The first row, the end and the adapter of each segment that has one."""
        found, first = [], 0
        for last, adapter in zip(ends.tolist(), adapters.tolist(), strict=True):
            found += [(first, last, adapter)] if adapter >= 0 else []
            first = last
        return found

    def lora_shrink(self, x: Any, lora_A: Any, segment_ends: Any, segment_adapters: Any, *, ranks: Any = None) -> Any:
        check_rows("x", x, "lora_A", lora_A)
        check_ranks(ranks, *lora_A.shape[:2])
        check_segments(segment_ends, segment_adapters, len(x), len(lora_A))
        S = self.blank(x, lora_A)
        for first, last, adapter in self.pieces(segment_ends, segment_adapters):
            r = self.rank(ranks, adapter, lora_A.shape[1])
            S[first:last, :r] = self.middle(x[first:last], lora_A[adapter, :r])
        return S

    def blank(self, x: Tensor, lora_A: Tensor) -> Tensor:
        """The memory into which S is written."""
        return torch.zeros(len(x), lora_A.shape[1], dtype=lora_A.dtype)

    def lora_expand(
        self, S: Any, base: Any, lora_B: Any, scale: Any, segment_ends: Any, segment_adapters: Any, *, ranks: Any = None
    ) -> Any:
        check_scale(scale, len(lora_B))
        check_segments(segment_ends, segment_adapters, len(S), len(lora_B))
        y = self.onto(base)
        for first, last, adapter in self.pieces(segment_ends, segment_adapters):
            r = self.rank(ranks, adapter, lora_B.shape[2])
            middle = S[first:last, :r].to(lora_B.dtype)
            y[first:last] += (middle @ lora_B[adapter, :, :r].T * self.factor(scale, adapter)).to(y.dtype)
        return y

    def onto(self, base: Tensor) -> Tensor:
        """The memory to which the update is added."""
        return base.clone()


class Call(torch.autograd.Function):
    """One differentiable call of a `Right`, on matrices."""

    @staticmethod
    def forward(ctx: Any, right: Right, x: Tensor, index: Tensor, *operands: Any) -> Tensor:
        weight, bias, A, B, scale, ranks = operands
        ctx.save_for_backward(x, index, weight, A, B, scale, ranks)
        ctx.right = right
        return right.forward(x, index, weight, bias, A, B, scale, ranks)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        x, index, weight, A, B, scale, ranks = ctx.saved_tensors
        d_x, d_A, d_B = ctx.right.backward(g, x, index, weight, A, B, scale, ranks)
        d_weight = ctx.right.d_weight(g, x) if ctx.needs_input_grad[3] else None
        needs_x, needs_A, needs_B = (ctx.needs_input_grad[place] for place in (1, 5, 6))
        found = (d_x if needs_x else None, None, d_weight, None, d_A if needs_A else None, d_B if needs_B else None)
        return None, *found, None, None
