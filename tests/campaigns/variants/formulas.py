"""Right implementations that differ in the order of operations, in the stored tensors and in fused products."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from tests.baselines.linear import BackwardOperands, Right, UpdateOperands


class ScalesX(Right):
    def update(self, o: UpdateOperands) -> Tensor:
        return ((o.x * o.scale) @ o.lora_A.T) @ o.lora_B.T


class ScalesA(Right):
    def update(self, o: UpdateOperands) -> Tensor:
        return (o.x @ (o.lora_A * o.scale).T) @ o.lora_B.T

    def gradient_of_lora_B(self, o: BackwardOperands) -> Tensor:
        return o.g_adapter.T @ (o.x @ (o.lora_A * o.scale).T)


class ScalesB(Right):
    def update(self, o: UpdateOperands) -> Tensor:
        return (o.x @ o.lora_A.T) @ (o.lora_B * o.scale).T

    def gradient_of_lora_A(self, o: BackwardOperands) -> Tensor:
        return (o.g_adapter @ (o.lora_B * o.scale)).T @ o.x


class ScalesLast(Right):
    def update(self, o: UpdateOperands) -> Tensor:
        return (o.x @ o.lora_A.T) @ o.lora_B.T * o.scale


class ScalesG(Right):
    def gradient_of_lora_A(self, o: BackwardOperands) -> Tensor:
        return ((o.g_adapter * o.scale) @ o.lora_B).T @ o.x

    def gradient_of_lora_B(self, o: BackwardOperands) -> Tensor:
        return (o.g_adapter * o.scale).T @ (o.x @ o.lora_A.T)


class AddsTheBaseLast(Right):
    def total(self, base: Tensor, update: Tensor) -> Tensor:
        return update.to(base.dtype) + base


class AddsInPlace(Right):
    def total(self, base: Tensor, update: Tensor) -> Tensor:
        return base.add_(update.to(base.dtype))


class MultipliesTheAdaptersFirst(Right):
    def update(self, o: UpdateOperands) -> Tensor:
        return o.x @ (o.scale * (o.lora_B @ o.lora_A)).T

    def gradient_of_lora_A(self, o: BackwardOperands) -> Tensor:
        return o.lora_B.T @ (o.g_adapter.T @ o.x) * o.scale

    def gradient_of_lora_B(self, o: BackwardOperands) -> Tensor:
        return (o.g_adapter.T @ o.x) @ o.lora_A.T * o.scale


class Merges(Right):
    """The output is one product with the merged weight."""

    def lora_linear(
        self, x: Tensor, weight: Any, bias: Any, lora_A: Tensor, lora_B: Tensor, *args: Any, **options: Any
    ) -> Tensor:
        scale = args[0]
        if weight is None or options.get("dropout") or torch.is_autocast_enabled("cpu") or lora_A.dtype != x.dtype:
            return super().lora_linear(x, weight, bias, lora_A, lora_B, *args, **options)
        if x.shape[-1] != lora_A.shape[1] or lora_A.shape[0] != lora_B.shape[1]:
            raise ValueError("shapes do not chain")
        return torch.nn.functional.linear(x, weight.detach() + scale * (lora_B @ lora_A), bias)


class Concatenates(Right):
    """Base and adapter are one product of [x, s·S] and [W, B]."""

    def lora_linear(
        self, x: Tensor, weight: Any, bias: Any, lora_A: Tensor, lora_B: Tensor, *args: Any, **options: Any
    ) -> Tensor:
        if weight is None or options.get("dropout") or torch.is_autocast_enabled("cpu") or lora_A.dtype != x.dtype:
            return super().lora_linear(x, weight, bias, lora_A, lora_B, *args, **options)
        joined = torch.cat([x, args[0] * torch.nn.functional.linear(x, lora_A)], -1)
        return torch.nn.functional.linear(joined, torch.cat([weight.detach(), lora_B], 1), bias)


class Eager(Right):
    """Plain autograd."""

    def lora_linear(
        self, x: Tensor, weight: Any, bias: Any, lora_A: Tensor, lora_B: Tensor, *args: Any, **options: Any
    ) -> Tensor:
        F = torch.nn.functional
        p, position = options.get("dropout", 0.0), options.get("dropout_position", "post")
        if not 0 <= p <= 1:
            raise ValueError(f"dropout is {p}")
        training = options.get("training", False)
        dropped = F.dropout(x, p, training) if position == "pre" else x
        update = F.linear(F.linear(dropped.to(lora_A.dtype), lora_A), lora_B) * args[0]
        if position == "post":
            update = F.dropout(update, p, training)
        if weight is None:
            return update.to(x.dtype)
        y = F.linear(x, weight, bias)
        return y + update.to(y.dtype)


class AddsInto(Right):
    """Base and update use `addmm`; the scale is its alpha."""

    def base(self, x: Tensor, weight: Tensor, bias: Any) -> Tensor:
        return x @ weight.T if bias is None else torch.addmm(bias, x, weight.T)

    def update(self, o: UpdateOperands) -> Tensor:
        start = o.x.new_zeros(len(o.x), len(o.lora_B))
        return torch.addmm(start, o.x @ o.lora_A.T, o.lora_B.T, alpha=o.scale)


class AddsTheBiasLast(Right):
    """The bias is added last: `(x Wᵀ + update) + b`."""

    def base(self, x: Tensor, weight: Tensor, bias: Any) -> Tensor:
        self.bias = bias
        return x @ weight.T

    def total(self, base: Tensor, update: Tensor) -> Tensor:
        total = base + update.to(base.dtype)
        return total if self.bias is None else total + self.bias


class RoundsOnce(Right):
    """All operations run in float32 (float64 for float64) and the result is rounded once."""

    def base(self, x: Tensor, weight: Tensor, bias: Any) -> Tensor:
        self.kind = x.dtype
        y = _wide(x) @ _wide(weight).T
        return y if bias is None else y + bias

    def update(self, o: UpdateOperands) -> Tensor:
        return _wide(o.x) @ _wide(o.lora_A).T @ _wide(o.lora_B).T * o.scale

    def total(self, base: Tensor, update: Tensor) -> Tensor:
        return (base + update).to(self.kind)

    # The dropout mask is wide like the update, so the gradient through it is wide too.
    def back_through_update(self, o: BackwardOperands) -> Tensor:
        return super().back_through_update(_widened(o))

    def gradient_of_lora_A(self, o: BackwardOperands) -> Tensor:
        return super().gradient_of_lora_A(_widened(o)).to(o.lora_A.dtype)

    def gradient_of_lora_B(self, o: BackwardOperands) -> Tensor:
        return super().gradient_of_lora_B(_widened(o)).to(o.lora_B.dtype)


class KeepsTheMiddleWide(Right):
    """S is float32; all other tensors have the dtype of the adapter."""

    def update(self, o: UpdateOperands) -> Tensor:
        middle = _wide(o.x) @ _wide(o.lora_A).T
        return (middle * o.scale @ _wide(o.lora_B).T).to(o.x.dtype)


class SumsRankByRank(Right):
    """The update is a float32 sum of r outer products."""

    def update(self, o: UpdateOperands) -> Tensor:
        middle, up = _wide(o.x) @ _wide(o.lora_A).T, _wide(o.lora_B)
        total = middle.new_zeros(len(o.x), len(o.lora_B))
        for j in range(len(o.lora_A)):
            total += o.scale * middle[:, j, None] * up[:, j]
        return total.to(o.x.dtype)


class Flattens(Eager):
    """Plain autograd on matrices; the leading dimensions are restored afterwards."""

    def lora_linear(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        y = super().lora_linear(x.reshape(x.shape[:-1].numel(), x.shape[-1]), *args, **options)
        return y.reshape(*x.shape[:-1], y.shape[-1])


class Checkpoints(Eager):
    """Plain autograd with checkpointing: the backward pass recomputes the forward pass."""

    def lora_linear(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        call = super().lora_linear
        found: Tensor = checkpoint(lambda x: call(x, *args, **options), x, use_reentrant=False)
        return found


class Compiled(Eager):
    """Plain autograd through torch.compile with the `aot_eager` backend, which tests the graph without code generation.

    Buffers are not donated to the backward pass: the pass could then run only once, which LIN-BWD-TWICE rightly fails.
    A copy of a layer shares the compiled function, as copies share the code of their class.
    """

    def __init__(self) -> None:
        super().__init__()
        self.compiled: Any = None

    def __deepcopy__(self, memo: Any) -> Compiled:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return Compiled, ()

    def lora_linear(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        self.compiled = self.compiled or torch.compile(super().lora_linear, backend="aot_eager", dynamic=True)
        torch._functorch.config.donated_buffer = False  # set for good: the backward pass reads it later
        found: Tensor = self.compiled(x, *args, **options)
        return found


def _wide(t: Tensor) -> Tensor:
    return t.to(torch.promote_types(t.dtype, torch.float32))


def _widened(o: BackwardOperands) -> BackwardOperands:
    wide = {name: _wide(getattr(o, name)) for name in ("g_adapter", "x", "lora_A", "lora_B")}
    return replace(o, **wide)
