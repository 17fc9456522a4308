"""A training step whose frozen products run on integers: the gradients of the adapters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from conformance.cases.case import Case, Space
from conformance.clauses.fhe.oracle import Product, Quantized, by_column, by_row
from conformance.clauses.fhe.split_model import split
from conformance.clauses.training.closed_form_network import SCALE, Adapted, weighted_sum
from conformance.judgement.judge import judge, worst
from conformance.judgement.linear_oracle import Expected
from conformance.judgement.outcomes import Inconclusive, require
from conformance.numerics.formats import Array, dtype_named
from conformance.specification.clause import clause
from conformance.target.calls import calling
from conformance.target.expected_errors import calling_quietly, refuses
from conformance.target.subject import Subject

NAMES = ("inner.base_layer", "outer.base_layer")
LORA = ("LoraTraining",)


@dataclass(frozen=True)
class StepCase(Case):
    """A training step of a network with three frozen layers, two of which have adapters.

    Fields:
        m: rows.   k, h, n: features in, between and out.   r: rank.   n_bits: bits of the products.   how: the mode.
    """

    m: int = 2
    k: int = 2
    h: int = 3
    n: int = 2
    r: int = 1
    n_bits: int = 8
    how: str = "disable"


STEP = Space(
    StepCase, m=(2, 3, 5), k=(2, 4), h=(3, 5, 9), n=(2, 3), r=(1, 2), n_bits=(8, 5), how=("disable", "simulate")
)


class Chain(nn.Module):
    """The network `out = outer(inner(first(x)))`, whose last two layers have adapters."""

    def __init__(self, case: StepCase) -> None:
        super().__init__()
        self.first = nn.Linear(case.k, case.h).requires_grad_(False)
        self.inner = Adapted(nn.Linear(case.h, case.h), case.r)
        self.outer = Adapted(nn.Linear(case.h, case.n, bias=False), case.r)

    def forward(self, x: torch.Tensor) -> Any:
        return self.outer(self.inner(self.first(x)))


def _safe(q: Quantized, x: Array) -> None:
    """Raise Inconclusive if the last bit of a float could change the integer it rounds to."""
    fractions = np.abs(x / q.scale) % 1
    if (np.abs(fractions - 0.5) < 1e-6).any():
        raise Inconclusive("an element lies half-way between two integers")


class Trained:
    """The numbers of a case, and the gradients of one step in closed form."""

    def __init__(self, case: StepCase) -> None:
        self.case = case
        random = np.random.default_rng([case.seed, case.m, case.k, case.h, case.n, case.r])

        def draw(*shape: int) -> Array:
            return np.asarray(random.standard_normal(shape))

        self.x, self.labels = draw(case.m, case.k), draw(case.m, case.n)
        self.weights = {
            "first.weight": draw(case.h, case.k),
            "first.bias": draw(case.h),
            "inner.base_layer.weight": draw(case.h, case.h),
            "inner.base_layer.bias": draw(case.h),
            "inner.lora_A.weight": draw(case.r, case.h),
            "inner.lora_B.weight": draw(case.h, case.r),
            "outer.base_layer.weight": draw(case.n, case.h),
            "outer.lora_A.weight": draw(case.r, case.h),
            "outer.lora_B.weight": draw(case.n, case.r),
        }

    def product(self, x: Array, name: str, *, back: bool = False) -> Array:
        """The result of a remote product of a layer."""
        weight = self.weights[f"{name}.weight"]
        rows = by_row(x, self.case.n_bits)
        _safe(rows, x)
        bias = None if back else self.weights.get(f"{name}.bias")
        return Product(rows, by_column(weight.T if back else weight, self.case.n_bits), bias).value()[1]

    def gradients(self) -> dict[str, Array]:
        """The gradient of each adapter for the loss Σ out ⊙ labels."""
        w = self.weights
        h0 = self.product(self.x, "first")
        s1 = h0 @ w["inner.lora_A.weight"].T
        h1 = self.product(h0, NAMES[0]) + SCALE * s1 @ w["inner.lora_B.weight"].T
        s2 = h1 @ w["outer.lora_A.weight"].T
        _safe(by_row(h1, self.case.n_bits), h1)
        t2 = self.labels @ w["outer.lora_B.weight"]
        d_h1 = self.product(self.labels, NAMES[1], back=True) + SCALE * t2 @ w["outer.lora_A.weight"]
        _safe(by_row(d_h1, self.case.n_bits), d_h1)
        t1 = d_h1 @ w["inner.lora_B.weight"]
        return {
            "inner.lora_A": SCALE * t1.T @ h0,
            "inner.lora_B": SCALE * d_h1.T @ s1,
            "outer.lora_A": SCALE * t2.T @ h1,
            "outer.lora_B": SCALE * self.labels.T @ s2,
        }

    def net(self, device: str) -> Chain:
        """The network with these weights."""
        net = Chain(self.case).to(device, torch.float64)
        with torch.no_grad():
            for name, value in self.weights.items():
                net.get_parameter(name).copy_(torch.from_numpy(value))
        return net

    def batch(self, device: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The batch (x, labels)."""
        return torch.from_numpy(self.x.copy()).to(device), torch.from_numpy(self.labels.copy()).to(device)


def training_of(subject: Subject, net: nn.Module) -> Any:
    """The target's LoraTraining over a network, with the loss function of these cases."""
    with calling_quietly("LoraTraining(model)"):
        training = subject.target.LoraTraining(net)
    with calling("LoraTraining.update_training_parameters(None, None, loss_fn)"):
        training.update_training_parameters(None, None, weighted_sum)
    return training


REMOTE = ["inference_model.first"] + [
    f"inference_model.{name}.{product}" for name in NAMES for product in ("forward_module", "backward_module")
]


@clause(
    "FHE-TRAIN",
    sentence="""A LoraTraining step in modes disable and simulate gives each adapter the gradient that follows from
    the integer products, and compile_model leaves no gradients behind.""",
    cases=STEP,
    dtypes=("float64",),
    needs=LORA,
    weight=0.5,
)
def test_training_step(subject: Subject, case: StepCase) -> float | None:
    trained = Trained(case)
    net, expected = trained.net(subject.device), trained.gradients()
    adapters = {name: net.get_parameter(f"{name}.weight") for name in expected}
    hybrid = split(subject, training_of(subject, net), REMOTE)
    batch = trained.batch(subject.device)
    with calling(f"compile_model((x, labels), n_bits={case.n_bits})"):
        hybrid.compile_model(batch, n_bits=case.n_bits)
    for name, adapter in adapters.items():
        left = adapter.grad is not None and bool(adapter.grad.any())
        require(not left, f"compile_model left gradients behind, for example that of {name}")
    with calling(f"the step with fhe={case.how!r}"):
        hybrid(batch, fhe=case.how)
    ratios = []
    for name, value in expected.items():
        allowed = np.full_like(value, 1e-9 * np.abs(value).max())
        ratios.append(
            judge(adapters[name].grad, Expected(f"gradient of {name}", value, allowed, dtype_named(case.dtype)))
        )
    return worst(*ratios)


class Backwards(nn.Module):
    """A model whose first registered layer runs last, so that its input needs a gradient."""

    def __init__(self, case: StepCase) -> None:
        super().__init__()
        self.first = nn.Linear(case.h, case.n).requires_grad_(False)
        self.inner = Adapted(nn.Linear(case.k, case.h), case.r)

    def forward(self, x: torch.Tensor) -> Any:
        return self.first(self.inner(x))


@clause(
    "FHE-SKIPPED",
    sentence="""If a layer that LoraTraining left unconverted runs remotely and needs dX, compile_model raises an
    error that names the layer. If it does not run remotely, compiling and a step succeed.""",
    why="LoraTraining skips the first registered layer, assuming that it runs first and needs no dX.",
    cases=STEP.narrowed(how=("remote", "not remote")),
    dtypes=("float64",),
    needs=LORA,
    weight=0.34,
)
def test_skipped_layer(subject: Subject, case: StepCase) -> float | None:
    training = training_of(subject, Backwards(case).to(subject.device, torch.float64))
    products = [f"inference_model.inner.base_layer.{name}" for name in ("forward_module", "backward_module")]
    names = ["inference_model.first", *products] if case.how == "remote" else products
    hybrid = split(subject, training, names)
    batch = Trained(case).batch(subject.device)
    if case.how == "remote":
        call = lambda: hybrid.compile_model(batch)  # noqa: E731
        refuses("compile_model of a remote layer that needs dX", call, "first", types=(RuntimeError, ValueError))
        return None
    for mode in ("disable", "simulate"):
        with calling(f"compile_model and a step with fhe={mode!r}"):
            hybrid.compile_model(batch)
            hybrid(batch, fhe=mode)
    return None
