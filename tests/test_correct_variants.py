"""Right but different implementations: no clause of the group `linear` may fail them, in any dtype."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from conformance.clause import FLOAT_DTYPES, MUST, load_all
from conformance.examine import Examination
from conformance.profiles import PROFILES
from conformance.target import Target
from tests.right import Right

Product = Callable[[Tensor, Tensor], Tensor]


def split(parts: int) -> Product:
    """a bᵀ with the reduction cut into parts, their float32 partials added in order."""

    def product(a: Tensor, b: Tensor) -> Tensor:
        wide = torch.promote_types(a.dtype, torch.float32)
        total = torch.zeros(a.shape[0], b.shape[0], dtype=wide)
        for left, right in zip(a.chunk(parts, 1), b.chunk(parts, 1), strict=True):
            total += left.to(wide) @ right.to(wide).T
        return total.to(a.dtype)

    return product


def reversed_order(a: Tensor, b: Tensor) -> Tensor:
    """a bᵀ summed from the last product to the first."""
    return a.flip(1) @ b.flip(1).T


def pairwise(a: Tensor, b: Tensor) -> Tensor:
    """a bᵀ by recursive halving of the reduction."""
    wide = torch.promote_types(a.dtype, torch.float32)
    return _halved(a.to(wide), b.to(wide)).to(a.dtype)


def _halved(a: Tensor, b: Tensor) -> Tensor:
    if a.shape[1] <= 8:
        return a @ b.T
    half = a.shape[1] // 2
    return _halved(a[:, :half], b[:, :half]) + _halved(a[:, half:], b[:, half:])


def doubled(a: Tensor, b: Tensor) -> Tensor:
    """a bᵀ in float64, rounded once."""
    return (a.double() @ b.double().T).to(a.dtype)


def by_einsum(a: Tensor, b: Tensor) -> Tensor:
    """a bᵀ by einsum."""
    return torch.einsum("mk,nk->mn", a, b).clone()  # a view cannot leave a custom function


def by_bmm(a: Tensor, b: Tensor) -> Tensor:
    """a bᵀ as a batch of one."""
    return torch.bmm(a[None], b.T[None])[0].clone()


def by_vmap(a: Tensor, b: Tensor) -> Tensor:
    """a bᵀ row by row, vectorised."""
    return torch.vmap(lambda row: b @ row)(a).clone() if len(a) else a @ b.T


class ProductsBy(Right):
    """Every product by another method of summation."""

    def __init__(self, product: Product) -> None:
        super().__init__()
        self.product = product

    def base(self, x: Tensor, weight: Tensor, bias: Any) -> Tensor:
        y = self.product(x, weight)
        return y if bias is None else y + bias

    def update(self, x: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
        return self.product(self.product(x, lora_A) * scale, lora_B)

    def gradient_of_lora_A(self, g: Tensor, x: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
        return self.product(self.product(g, lora_B.T).T, x.T) * scale

    def gradient_of_lora_B(self, g: Tensor, x: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
        return self.product(g.T, self.product(x, lora_A).T) * scale


class ScalesX(Right):
    def update(self, x: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
        return ((x * scale) @ lora_A.T) @ lora_B.T


class ScalesA(Right):
    def update(self, x: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
        return (x @ (lora_A * scale).T) @ lora_B.T

    def gradient_of_lora_B(self, g: Tensor, x: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
        return g.T @ (x @ (lora_A * scale).T)


class ScalesB(Right):
    def update(self, x: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
        return (x @ lora_A.T) @ (lora_B * scale).T

    def gradient_of_lora_A(self, g: Tensor, x: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
        return (g @ (lora_B * scale)).T @ x


class ScalesLast(Right):
    def update(self, x: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
        return (x @ lora_A.T) @ lora_B.T * scale


class ScalesG(Right):
    def gradient_of_lora_A(self, g: Tensor, x: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
        return ((g * scale) @ lora_B).T @ x

    def gradient_of_lora_B(self, g: Tensor, x: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
        return (g * scale).T @ (x @ lora_A.T)


class AddsTheBaseLast(Right):
    def total(self, base: Tensor, update: Tensor) -> Tensor:
        return update.to(base.dtype) + base


class AddsInPlace(Right):
    def total(self, base: Tensor, update: Tensor) -> Tensor:
        return base.add_(update.to(base.dtype))


class MultipliesTheAdaptersFirst(Right):
    def update(self, x: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
        return x @ (scale * (lora_B @ lora_A)).T

    def gradient_of_lora_A(self, g: Tensor, x: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
        return lora_B.T @ (g.T @ x) * scale

    def gradient_of_lora_B(self, g: Tensor, x: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
        return (g.T @ x) @ lora_A.T * scale


class Merges(Right):
    """One product with the merged weight."""

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
    """Base and adapter in one product over [W, B] and [x, s·S]."""

    def base(self, x: Tensor, weight: Tensor, bias: Any) -> Tensor:
        self.operands = (x, weight, bias)
        return super().base(x, weight, bias)

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


VARIANTS: dict[str, Right] = {
    "right": Right(),
    "scales x": ScalesX(),
    "scales A": ScalesA(),
    "scales B": ScalesB(),
    "scales last": ScalesLast(),
    "scales g": ScalesG(),
    "base last": AddsTheBaseLast(),
    "in place": AddsInPlace(),
    "BA first": MultipliesTheAdaptersFirst(),
    "merged": Merges(),
    "concatenated": Concatenates(),
    "eager": Eager(),
    "split K in 2": ProductsBy(split(2)),
    "split K in 4": ProductsBy(split(4)),
    "split K in 16": ProductsBy(split(16)),
    "reversed": ProductsBy(reversed_order),
    "pairwise": ProductsBy(pairwise),
    "float64 inside": ProductsBy(doubled),
    "einsum": ProductsBy(by_einsum),
    "bmm": ProductsBy(by_bmm),
    "vmap": ProductsBy(by_vmap),
}


# what only repeats the formulas under another mode says nothing more about an order of summation
SAME_FORMULA = ("COMPILE", "CKPT", "SHAPES", "DROP")
PROFILE = dataclasses.replace(PROFILES["quick"], volume=4)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("name", VARIANTS)
def test_no_clause_fails_a_correct_variant(name: str, dtype: str) -> None:
    target = Target.of(VARIANTS[name], name)
    alarms = []
    for clause in load_all().values():
        if clause.group != "linear" or clause.level != MUST or any(word in clause.id for word in SAME_FORMULA):
            continue
        for subject in target.subjects(clause) if dtype in clause.dtypes else ():
            result = Examination(clause, subject, dtype, PROFILE).run()
            if result.status != "pass":
                alarms.append(f"{clause.id} {subject.name} {result.status}: {result.case}\n{result.message}")
    assert not alarms, "\n\n".join(alarms)
