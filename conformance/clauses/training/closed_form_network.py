"""A small network with two adapted layers in PEFT's form, and closed formulas for its loss and gradients.

`out = L2(relu(L1(relu(x W0ᵀ + b0))))` with `L(h) = h Wᵀ + b + s·(h Aᵀ) Bᵀ`, and `loss = Σ out ⊙ labels`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from conformance.cases.case import Case, Space
from conformance.judgement.linear_oracle import Expected
from conformance.judgement.outcomes import Inconclusive
from conformance.numerics.formats import Array, accumulator_unit, dtype_named, format_of, rounded

SCALE = 2.0
EXACT = ("float64", "float32", "bfloat16")
ONE = ("float32",)
ADAPTERS = ("inner.lora_A", "inner.lora_B", "outer.lora_A", "outer.lora_B")


@dataclass(frozen=True)
class StepCase(Case):
    """One or more calls of a LoraTraining.

    Fields:
        m: rows of a micro-batch.   k, h, n: features in, between and out.   r: rank.
        steps: gradient_accumulation_steps.   calls: micro-batches.
        values: `integers` (exact in every dtype) or `normal`.
        clip: max_grad_norm ÷ norm; 0 for no clipping.
        args: training_args as a `dict` or a `namespace`.
        source: where the loss comes from: `loss_fn`, or the model itself as `object`, `dict` or `tuple`.
        how: the variant of the clause.
    """

    m: int = 1
    k: int = 1
    h: int = 2
    n: int = 1
    r: int = 1
    steps: int = 1
    calls: int = 1
    values: str = "integers"
    clip: float = 0.0
    args: str = "dict"
    source: str = "loss_fn"
    how: str = ""


STEPS = Space(
    StepCase,
    m=(1, 2, 3, 5),
    k=(1, 2, 4),
    h=(2, 3, 5),
    n=(1, 2, 3),
    r=(1, 2, 3),
    args=("dict", "namespace"),
    source=("loss_fn", "object"),
)


class Adapted(nn.Module):
    """A frozen linear layer wrapped with an adapter, with the names PEFT gives its parts."""

    def __init__(self, base: nn.Linear, rank: int, *, dropout: bool = True) -> None:
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.lora_A = nn.Linear(base.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False)
        if dropout:
            self.lora_dropout = nn.Dropout(0.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        update = self.lora_B(self.lora_A(self.lora_dropout(x) if hasattr(self, "lora_dropout") else x))
        out: torch.Tensor = self.base_layer(x) + SCALE * update
        return out


class Net(nn.Module):
    """The network of this file; given labels, it returns its own loss in the form that `source` names."""

    def __init__(self, case: StepCase, *, dropout: bool = True) -> None:
        super().__init__()
        self.source = case.source
        self.first = nn.Linear(case.k, case.h).requires_grad_(False)
        self.inner = Adapted(nn.Linear(case.h, case.h), case.r, dropout=dropout)
        self.outer = Adapted(nn.Linear(case.h, case.n, bias=False), case.r, dropout=dropout)

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        out: torch.Tensor = self.outer(torch.relu(self.inner(torch.relu(self.first(x)))))
        if labels is None:
            return out
        loss = weighted_sum(out, labels)
        return {
            "object": SimpleNamespace(loss=loss, logits=out),
            "dict": {"loss": loss, "logits": out},
            "tuple": (loss, out),
        }[self.source]


def weighted_sum(out: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The loss of these cases: Σ out ⊙ labels, whose gradient is the labels."""
    return (out * labels).sum()


def mean_of_rows(out: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The same loss averaged over rows."""
    return weighted_sum(out, labels) / len(out)


@dataclass(frozen=True)
class Bounded:
    """A matrix with a bound on the error of computing it in floating point, carried through each operation."""

    value: Array
    error: Array
    unit: float
    accumulator: float

    def __matmul__(self, other: Bounded) -> Bounded:
        value = self.value @ other.value
        left, right = np.abs(self.value), np.abs(other.value)
        error = left @ other.error + self.error @ right + self.error @ other.error
        error = error + self.value.shape[-1] * self.accumulator * (left @ right)
        return self._rounded(value, error)

    def __add__(self, other: Bounded) -> Bounded:
        return self._rounded(self.value + other.value, self.error + other.error)

    def times(self, factor: float) -> Bounded:
        return self._rounded(self.value * factor, self.error * abs(factor))

    def where(self, mask: Array) -> Bounded:
        return Bounded(self.value * mask, self.error * mask, self.unit, self.accumulator)

    @property
    def T(self) -> Bounded:
        return Bounded(self.value.T, self.error.T, self.unit, self.accumulator)

    def positive(self) -> Array:
        """A mask of the elements that are positive whatever the rounding.

        Raises:
            Inconclusive: if rounding may decide the sign of an element.
        """
        if (np.abs(self.value) < self.error).any():
            raise Inconclusive("rounding may decide whether a relu passes an element")
        return (self.value > 0).astype(np.float64)

    def _rounded(self, value: Array, error: Array) -> Bounded:
        return Bounded(value, error + self.unit * (np.abs(value) + error), self.unit, self.accumulator)


class Problem:
    """Weights and micro-batches of a case, and the loss and gradients that training them gives."""

    def __init__(self, case: StepCase, device: str = "cpu", *, rows: tuple[int, ...] = ()) -> None:
        self.case, self.device, self.dtype = case, device, dtype_named(case.dtype)
        self.rows = rows or (case.m,) * case.calls
        attempt = 0
        while not self._draw(attempt):
            attempt += 1

    @property
    def exact(self) -> bool:
        """Whether all values are small integers, so that no order of summation rounds."""
        return self.case.values == "integers"

    def _draw(self, attempt: int) -> bool:
        """Draw values, and return whether no gradient is zero and, with integers, no sum rounds."""
        case = self.case
        random = np.random.default_rng([case.seed, case.m, case.k, case.h, case.n, case.r, attempt])

        def draw(*shape: int) -> Array:
            normal: Array = random.standard_normal(shape)
            if not self.exact:
                return rounded(normal / np.sqrt(shape[-1]), self.dtype)
            keep = random.random(shape) < (1.0 if attempt % 4 == 0 else 0.7)
            return np.where(normal > 0, 1.0, -1.0) * keep

        # the biases make most arguments of each relu positive
        self.weights = {
            "first.weight": draw(case.h, case.k),
            "first.bias": np.full(case.h, 2.0),
            "inner.base_layer.weight": draw(case.h, case.h),
            "inner.base_layer.bias": rounded(np.abs(draw(case.h)) + 1, self.dtype),
            "inner.lora_A.weight": draw(case.r, case.h),
            "inner.lora_B.weight": draw(case.h, case.r),
            "outer.base_layer.weight": draw(case.n, case.h),
            "outer.lora_A.weight": draw(case.r, case.h),
            "outer.lora_B.weight": draw(case.n, case.r),
        }
        self.batches = [(draw(m, case.k), draw(m, case.n)) for m in self.rows]
        self._largest = 0.0
        self._results = [self._step(x, labels) for x, labels in self.batches]
        totals = [expected.value for expected in self.gradients().values()]
        alive = all(loss.value.any() for loss, _ in self._results) and all(t.any() for t in totals)
        alive = alive and all(g.value.any() for _, gradients in self._results for g in gradients.values())
        added = max(sum(np.abs(g[name].value).max() for _, g in self._results) for name in ADAPTERS)
        fits = not self.exact or max(self._largest, added) <= format_of(self.dtype).exact
        return (alive and fits) or attempt > 400

    def _bounded(self, value: Array) -> Bounded:
        unit = 0.0 if self.exact else format_of(self.dtype).unit
        accumulator = 0.0 if self.exact else accumulator_unit(self.dtype)
        return Bounded(value, np.zeros_like(value), unit, accumulator)

    def _step(self, x: Array, labels: Array) -> tuple[Bounded, dict[str, Bounded]]:
        """Loss and adapter gradients of one micro-batch, by the formulas of this file."""
        w = {name: self._bounded(value) for name, value in self.weights.items()}
        zero = np.zeros((len(x), self.case.h))
        pre0 = self._bounded(x) @ w["first.weight"].T + self._bounded(zero + self.weights["first.bias"])
        h0 = pre0.where(pre0.positive())
        s1 = h0 @ w["inner.lora_A.weight"].T
        base1 = h0 @ w["inner.base_layer.weight"].T + self._bounded(zero + self.weights["inner.base_layer.bias"])
        pre1 = base1 + (s1 @ w["inner.lora_B.weight"].T).times(SCALE)
        mask = pre1.positive()
        h1 = pre1.where(mask)
        s2 = h1 @ w["outer.lora_A.weight"].T
        out = h1 @ w["outer.base_layer.weight"].T + (s2 @ w["outer.lora_B.weight"].T).times(SCALE)
        g = self._bounded(labels)
        flat = out.value.reshape(1, -1), out.error.reshape(1, -1)
        loss = Bounded(*flat, out.unit, out.accumulator) @ self._bounded(labels.reshape(-1, 1))
        t2 = g @ w["outer.lora_B.weight"]
        d_h1 = (g @ w["outer.base_layer.weight"] + (t2 @ w["outer.lora_A.weight"]).times(SCALE)).where(mask)
        t1 = d_h1 @ w["inner.lora_B.weight"]
        gradients = {
            "inner.lora_A": (t1.T @ h0).times(SCALE),
            "inner.lora_B": (d_h1.T @ s1).times(SCALE),
            "outer.lora_A": (t2.T @ h1).times(SCALE),
            "outer.lora_B": (g.T @ s2).times(SCALE),
        }
        parts = (pre0, s1, pre1, s2, out, loss, t2, d_h1, t1, *gradients.values())
        absolute = float((np.abs(out.value) * np.abs(labels)).sum())
        self._largest = max(self._largest, absolute, *(float(np.abs(p.value).max()) for p in parts))
        return loss, gradients

    def loss(self, index: int = 0, divided: float = 1.0) -> Expected:
        """The loss of one micro-batch, divided."""
        bounded = self._results[index][0]
        value = bounded.value.reshape(()) / divided
        allowed = None if self._divides_exactly(divided) else self._allowed(bounded, divided).reshape(())
        return Expected("loss", value, allowed, self.dtype)

    def gradients(self, divided: float = 1.0, *, only: tuple[int, ...] = ()) -> dict[str, Expected]:
        """The gradients of the adapters, summed over micro-batches (or the listed ones), and divided."""
        expected = {}
        for name in ADAPTERS:
            chosen = [g[name] for i, (_, g) in enumerate(self._results) if not only or i in only]
            total = chosen[0]
            for other in chosen[1:]:
                total = total + other
            allowed = None if self._divides_exactly(divided) else self._allowed(total, divided)
            expected[name] = Expected(f"gradient of {name}", total.value / divided, allowed, self.dtype)
        return expected

    def _divides_exactly(self, divided: float) -> bool:
        return self.exact and math.frexp(divided)[0] == 0.5  # a power of two

    def _allowed(self, bounded: Bounded, divided: float) -> Array:
        unit = format_of(self.dtype).unit
        return np.asarray((bounded.error + 4 * unit * np.abs(bounded.value)) / divided + format_of(self.dtype).step)

    def norm(self, divided: float = 1.0) -> float:
        """The norm of the summed and divided gradients of all adapters."""
        return float(np.sqrt(sum((e.value**2).sum() for e in self.gradients(divided).values())))

    def net(self, **options: Any) -> Net:
        """The network with these weights."""
        net = Net(self.case, **options).to(self.device, self.dtype)
        with torch.no_grad():
            for name, value in self.weights.items():
                net.get_parameter(name).copy_(torch.from_numpy(value))
        return net

    def batch(self, index: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """(x, labels) of one micro-batch."""
        x, labels = self.batches[index]
        return tuple(torch.from_numpy(v.copy()).to(self.device, self.dtype) for v in (x, labels))  # type: ignore[return-value]
