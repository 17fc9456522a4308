"""Errors of a split model: modes at the wrong time, numbers it cannot quantise, names it cannot split at."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from conformance.clauses.fhe.quantized_case import SMALL, Problem, QuantizedCase
from conformance.clauses.fhe.split_model import Holder, Split, linear
from conformance.clauses.hybrid.frozen_layer import backward
from conformance.clauses.hybrid.module_tree import Doubling
from conformance.judgement.judge import judge, worst
from conformance.judgement.outcomes import require
from conformance.specification.clause import clause
from conformance.target.expected_errors import refuses
from conformance.target.subject import Subject

REFUSED = (ValueError, RuntimeError)
ONE = ("float32",)
CUSTOM = ("CustomLinear",)
FEW = SMALL.narrowed(values=("normal",), bias=(False,))
QUANTIZED = ("disable", "simulate", "execute", "remote")


@clause(
    "FHE-EARLY",
    sentence="""Before compile_model, modes disable, simulate, execute and remote raise an error that says so, whether
    the mode is given as fhe or by set_fhe_mode.""",
    cases=FEW.narrowed(how=QUANTIZED, w=("packed",), side=("forward", "backward")),
    dtypes=ONE,
    weight=0.67,
)
def test_modes_before_compiling(subject: Subject, case: QuantizedCase) -> float | None:
    split = Split(subject, Problem(case, subject.device), "linear")
    x = split.problem["x"]
    if case.side == "forward":
        refuses(f"fhe={case.how!r} before compile_model", lambda: split.hybrid(x, fhe=case.how), types=REFUSED)
    else:
        what = f"set_fhe_mode({case.how!r}) before compile_model and a call"

        def call() -> Any:
            split.hybrid.set_fhe_mode(case.how)
            return split.net(x)

        refuses(what, call, types=REFUSED)
    return None


@clause(
    "FHE-LATE",
    sentence="Mode calibrate raises an error after compile_model, and the compiled layer still gives its results.",
    cases=FEW,
    dtypes=ONE,
    weight=0.34,
)
def test_calibrating_after_compiling(subject: Subject, case: QuantizedCase) -> float | None:
    split = Split(subject, Problem(case, subject.device), "linear").compile()
    call = lambda: split.hybrid(split.problem["x"], fhe="calibrate")  # noqa: E731
    refuses("fhe='calibrate' after compile_model", call, types=REFUSED)
    return judge(split.forward("disable"), split.problem.y())


@clause(
    "FHE-UNKNOWN-MODE",
    sentence="An unknown mode raises a ValueError that names it, and the model stays in the mode it had.",
    cases=FEW.narrowed(how=("encrypted", "", "Disable", "none")),
    dtypes=ONE,
    weight=0.5,
)
def test_unknown_mode(subject: Subject, case: QuantizedCase) -> float | None:
    split = Split(subject, Problem(case, subject.device), "linear").compile()
    split.forward("disable")
    x = split.problem["x"]
    refuses(f"fhe={case.how!r}", lambda: split.hybrid(x, fhe=case.how), case.how)
    refuses(f"set_fhe_mode({case.how!r})", lambda: split.hybrid.set_fhe_mode(case.how), case.how)
    return judge(split.net(x), split.problem.y())


@clause(
    "FHE-NO-SERVER",
    sentence="Mode remote raises an error that mentions the server if the model has no server address.",
    cases=FEW,
    dtypes=ONE,
    weight=0.34,
)
def test_remote_without_server(subject: Subject, case: QuantizedCase) -> float | None:
    split = Split(subject, Problem(case, subject.device), "linear").compile()
    call = lambda: split.hybrid(split.problem["x"], fhe="remote")  # noqa: E731
    refuses("fhe='remote' without server_remote_address", call, "server", types=REFUSED)
    return None


N_BITS: dict[str, Any] = {"1": 1, "0": 0, "-8": -8, "64": 64, "True": True, "8.0": 8.0, "'8'": "8", "None": None}


@clause(
    "FHE-N-BITS",
    sentence="""compile_model raises an error that names n_bits if n_bits is not an int (True does not count as one),
    or is too small or too large to compute with, and the model then counts as not compiled.""",
    cases=FEW.narrowed(how=tuple(N_BITS)),
    dtypes=ONE,
    weight=1.34,
)
def test_n_bits(subject: Subject, case: QuantizedCase) -> float | None:
    split = Split(subject, Problem(case, subject.device), "linear")
    x, types = split.problem["x"], (ValueError, TypeError)
    call = lambda: split.hybrid.compile_model(x, n_bits=N_BITS[case.how])  # noqa: E731
    refuses(f"compile_model(x, n_bits={case.how})", call, "n_bits", types=types)
    refuses("fhe='disable' after a refused compile_model", lambda: split.hybrid(x, fhe="disable"), types=REFUSED)
    return None


@clause(
    "FHE-NONFINITE",
    sentence="""NaN or infinite elements of x or g raise an error in every mode that quantises, and those of W raise
    one in compile_model. After the error the model gives its right results.""",
    cases=FEW.narrowed(
        how=("x", "g", "weight"), w=("packed",), lead=("2d", "3d"), side=("nan", "inf", "-inf"), g=("packed",)
    ),
    dtypes=("float32", "bfloat16"),
    needs=CUSTOM,
    weight=0.67,
)
def test_nonfinite(subject: Subject, case: QuantizedCase) -> float | None:
    problem = Problem(dataclasses.replace(case, side="forward"), subject.device)
    split = Split(subject, problem)
    tensor = problem[case.how]
    place = tensor[(0,) * tensor.ndim].clone()
    if case.how != "weight":
        split.compile()
    with torch.no_grad():
        tensor[(0,) * tensor.ndim] = float(case.side)
    for mode in ("disable", "simulate") if case.how != "weight" else ("compile_model",):
        refuses(f"{case.side} in {case.how} with {mode}", _with(split, mode), types=REFUSED)
    with torch.no_grad():
        tensor[(0,) * tensor.ndim] = place
    y, dX = (split.compile() if case.how == "weight" else split).both("disable")
    return worst(judge(y, problem.y()), judge(dX, problem.dX()))


def _with(split: Split, mode: str) -> Callable[[], Any]:
    """A function that compiles, or that runs forward and backward in a mode."""
    problem = split.problem
    if mode == "compile_model":
        return lambda: split.hybrid.compile_model(torch.ones_like(problem["x"]), n_bits=problem.case.n_bits)

    def call() -> Any:
        x = problem["x"].detach().requires_grad_(True)
        y = split.hybrid(x, fhe=mode)
        return torch.autograd.backward([y], [problem["g"]])

    return call


class Parts(nn.Module):
    """A model with modules of many kinds."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.block = Holder(nn.Identity())
        self.norm = nn.LayerNorm(2)
        self.embed = nn.Embedding(3, 2)
        self.conv = nn.Conv1d(2, 2, 1)
        self.doubling = Doubling(2, 2)
        self.lora_A = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> Any:
        return self.layer(x)


@clause(
    "FHE-NAMES",
    sentence="""HybridFHEModel raises an error that mentions the name for a name that no module has, an adapter's
    name, and the name of a module that is not a linear layer; it also raises for an empty list of names. A refused
    call replaces no layer.""",
    cases=FEW.narrowed(
        how=("layers", "layer.weight", "block", "norm", "embed", "conv", "doubling", "lora_A", "no name at all")
    ),
    dtypes=ONE,
    weight=1.5,
)
def test_names(subject: Subject, case: QuantizedCase) -> float | None:
    problem = Problem(case, subject.device)
    layer = linear(problem.weight, problem.bias)
    model = Parts(layer)
    names = [] if case.how == "no name at all" else ["layer", case.how]
    mentions = names[1:]
    refuses(f"HybridFHEModel(model, {names})", lambda: subject.thing(model, names), *mentions, types=REFUSED)
    require(model.layer is layer, f"HybridFHEModel refused {case.how!r} but had replaced a layer by then")
    return None


@clause(
    "FHE-FEATURES",
    sentence="""x or g whose last dimension is not the module's number of features raises an error in every mode, and
    later calls are right.""",
    cases=FEW.narrowed(how=("disable", "simulate", "torch"), lead=("2d", "3d")),
    dtypes=ONE,
    needs=CUSTOM,
    weight=0.5,
)
def test_features(subject: Subject, case: QuantizedCase) -> float | None:
    split = Split(subject, Problem(case, subject.device)).compile()
    for wider in (case.k + 1, case.k - 1, 1):
        x = torch.ones(*case.leading, wider)
        what = f"x {list(x.shape)} of a layer of {case.k} features, fhe={case.how!r},"
        refuses(what, lambda x=x: split.hybrid(x, fhe=case.how), types=REFUSED)  # type: ignore[misc]
    y, dX = split.both("disable")
    return worst(judge(y, split.problem.y()), judge(dX, split.problem.dX()))


@clause(
    "FHE-NEEDS-DX",
    sentence="""A remote nn.Linear has no backward product: in every mode that quantises, if x requires grad, it
    raises an error that names the layer and never gives a wrong gradient.""",
    cases=FEW.narrowed(how=("disable", "simulate")),
    dtypes=ONE,
    weight=0.5,
)
def test_gradient_without_module(subject: Subject, case: QuantizedCase) -> float | None:
    problem = Problem(case, subject.device)
    split = Split(subject, problem, "linear").compile()
    x = problem["x"].detach().requires_grad_(True)

    def step() -> Any:
        y = split.hybrid(x, fhe=case.how)
        # adds a graph, as an adapter beside the layer does
        return backward(y + 0 * x.sum(), problem["g"])

    refuses(f"x.requires_grad of a remote nn.Linear, fhe={case.how!r}", step, "layer", types=REFUSED)
    return None


@clause(
    "FHE-STATIC-UNSEEN",
    sentence="Static quantisation of a module that has received no input is an error that names the module.",
    cases=FEW,
    dtypes=ONE,
    needs=CUSTOM,
    weight=0.34,
)
def test_static_without_range(subject: Subject, case: QuantizedCase) -> float | None:
    split = Split(subject, Problem(case, subject.device))
    x = split.problem["x"].detach()
    refuses(
        "compile_model(x, use_dynamic_quantization=False) before any backward pass",
        lambda: split.hybrid.compile_model(x, use_dynamic_quantization=False),
        "layer.backward_module",
        types=REFUSED,
    )
    return None
