"""Side effects of a split model: on its inputs, on global settings, and on layers that are not named."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from conformance.cases.memory_layout import LAYOUTS
from conformance.clauses.fhe.mode_switching import CUSTOM, ONE, TYPES
from conformance.clauses.fhe.quantized_case import SMALL, Problem, QuantizedCase, problem_in_floats
from conformance.clauses.fhe.split_model import Split, linear, run, split
from conformance.clauses.hybrid.frozen_layer import backward
from conformance.isolation.process_state import kept
from conformance.judgement.judge import judge, worst
from conformance.judgement.outcomes import require
from conformance.specification.clause import clause
from conformance.target.calls import calling
from conformance.target.subject import Subject


@clause(
    "FHE-INPUTS",
    sentence="No mode modifies x, g, W or b, nor the memory around them.",
    cases=SMALL.narrowed(
        x=LAYOUTS, g=LAYOUTS, w=LAYOUTS[:-1], lead=("2d", "3d"), how=("disable", "simulate", "torch", "static")
    ),
    dtypes=TYPES,
    needs=CUSTOM,
    weight=0.67,
)
def test_inputs_unmodified(subject: Subject, case: QuantizedCase) -> float | None:
    problem = Problem(case, subject.device)
    layer = Split(subject, problem)
    if case.how == "static":
        layer.both("calibrate")
        layer.compile(problem["x"], use_dynamic_quantization=False)
    else:
        layer.compile(problem["x"])
    layer.both("disable" if case.how == "static" else case.how)
    for name, placed in problem.placed.items():
        require(not placed.contents_changed(), f"{name} was modified in place")
        require(not placed.margins_changed(), f"memory around {name} was written")
    return None


@clause(
    "FHE-OUTPUT",
    sentence="y and dX own their memory: later calls do not change them, and the caller may modify y in place.",
    cases=SMALL.narrowed(how=("disable", "simulate")),
    dtypes=TYPES,
    needs=CUSTOM,
    weight=0.5,
)
def test_output_belongs_to_caller(subject: Subject, case: QuantizedCase) -> float | None:
    problem, other = (Problem(dataclasses.replace(case, seed=case.seed + i), subject.device) for i in (0, 1))
    layer = Split(subject, problem).compile()
    x = problem["x"].detach().requires_grad_(True)
    y = layer.forward(case.how, x)
    layer.forward(case.how, other["x"])
    judged = judge(y, problem.y())
    with calling("y.mul_(2) and the backward pass after it"):
        y = y.mul_(2.0)
    backward(y, problem["g"] / 2)
    require(not problem.placed["x"].contents_changed(), "modifying y in place modified x")
    return worst(judged, judge(x.grad, problem.dX()))


@clause(
    "FHE-SIDE-GLOBAL",
    sentence="Building, compiling and running a split model in any mode change no global setting and no random state.",
    cases=SMALL.narrowed(how=("disable", "simulate", "torch")),
    dtypes=ONE,
    needs=CUSTOM,
    weight=0.5,
)
def test_settings_kept(subject: Subject, case: QuantizedCase) -> float | None:
    problem = Problem(case, subject.device)
    layer = Split(subject, problem)
    with kept("compile_model"):
        layer.compile()
    with kept(f"a call in mode {case.how}"):
        x = problem["x"].detach().requires_grad_(True)
        y = layer.forward(case.how, x)
    with kept(f"the backward pass in mode {case.how}"):
        backward(y, problem["g"])
    return None


class Two(nn.Module):
    """A model of two layers side by side, or of one under two names."""

    def __init__(self, one: nn.Module, other: nn.Module) -> None:
        super().__init__()
        self.one, self.other = one, other

    def forward(self, x: torch.Tensor) -> Any:
        return self.one(x) + self.other(x)


@clause(
    "FHE-ONLY-NAMED",
    sentence="""remote_modules maps exactly the given names to the modules that replace them; no other module is
    replaced.""",
    cases=SMALL.narrowed(bias=(False,), how=("one", "other", "both")),
    dtypes=("float64",),
    weight=0.5,
)
def test_only_named(subject: Subject, case: QuantizedCase) -> float | None:
    problem = Problem(case, subject.device)
    layers = {name: linear(problem.weight, problem.bias) for name in ("one", "other")}
    model = Two(*layers.values())
    names = list(layers) if case.how == "both" else [case.how]
    hybrid = split(subject, model, names)
    with calling("reading remote_modules"):
        remote = dict(hybrid.remote_modules)
    require(sorted(remote) == sorted(names), f"remote_modules has {', '.join(remote)}: expected {', '.join(names)}")
    for name, layer in layers.items():
        same = getattr(model, name) is layer
        require(same or name in names, f"{name} was replaced although only {', '.join(names)} was named")
        require(not same or name not in names, f"{name} was not replaced")
        require(
            same or remote[name] is getattr(model, name), f"remote_modules[{name!r}] is not the module in the model"
        )
    with calling("compile_model(x)"):
        hybrid.compile_model(problem["x"], n_bits=case.n_bits)
    floats = problem_in_floats(problem)
    ints = problem.y()
    times = 2 if case.how == "both" else 1
    value = ints.value * times + floats.value * (2 - times)
    allowed = sum((e.budget for e in (ints, floats) if e.budget is not None), 1e-12 * abs(value))
    return judge(run(hybrid, "disable", problem["x"]), dataclasses.replace(floats, value=value, budget=allowed))


@clause(
    "FHE-TWO-NAMES",
    sentence="""A module reachable under two names is replaced under both by one remote module, whether one name or
    both are given.""",
    cases=SMALL.narrowed(bias=(False,), how=("one", "other", "both")),
    dtypes=("float64",),
    weight=0.5,
)
def test_two_names(subject: Subject, case: QuantizedCase) -> float | None:
    problem = Problem(case, subject.device)
    layer = linear(problem.weight, problem.bias)
    model = Two(layer, layer)
    names = ["one", "other"] if case.how == "both" else [case.how]
    hybrid = split(subject, model, names)
    require(
        model.one is not layer and model.other is not layer, f"named {names}, the module was not replaced everywhere"
    )
    require(model.one is model.other, "one module under two names became two")
    with calling("compile_model(x, use_dynamic_quantization=False)"):
        hybrid.compile_model(problem["x"], n_bits=case.n_bits, use_dynamic_quantization=False)
    x = problem["x"]
    expected = problem.y((float(x.min()), float(x.max())))
    budget = None if expected.budget is None else 2 * expected.budget
    return judge(
        run(hybrid, "disable", x), dataclasses.replace(expected, value=2 * expected.value, budget=budget, terms={})
    )
