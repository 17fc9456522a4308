"""What a split model keeps and what it notices: modes, operands, settings, names, and weights that change."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from conformance.cases.memory_layout import LAYOUTS
from conformance.fhe.problem import SMALL, Problem, QuantizedCase
from conformance.fhe.split import Split, linear, run, split
from conformance.hybrid.frozen import backward, forward
from conformance.isolation.process_state import kept
from conformance.judgement.judge import Inconclusive, calling, judge, require, worst
from conformance.specification.clause import clause
from conformance.target.subject import Subject

CUSTOM = ("CustomLinear",)
ONE = ("float32",)
TYPES = ("float32", "bfloat16")
ORDERS = {
    "torch, simulate": ("torch", "simulate"),
    "simulate": ("simulate", "simulate"),
    "torch": ("torch",),
    "a refused mode": ("nothing",),
    "a refused input": ("not a number",),
    "other inputs": ("larger",),
}


@clause(
    "FHE-MODES",
    "Switching modes leaves no state: after any others, torch and disable give the bits they gave at first.",
    group="fhe",
    cases=SMALL.narrowed(how=tuple(ORDERS)),
    needs=CUSTOM,
)
def test_modes_leave_no_state(subject: Subject, case: QuantizedCase) -> float | None:
    problem = Problem(case, subject.device)
    layer = Split(subject, problem).compile()
    first = {mode: layer.both(mode) for mode in ("torch", "disable")}
    for step in ORDERS[case.how]:
        if step in ("nothing", "not a number"):
            _refused(layer, step)
        elif step == "larger":
            layer.both("disable", problem["x"].detach() * 64)
        else:
            layer.both(step)
    for mode in ("disable", "torch", "disable"):
        for name, a, b in zip(("y", "dX"), first[mode], layer.both(mode), strict=True):
            require(torch.equal(a, b), f"{name} of mode {mode} is not what it was before {case.how}")
    return worst(judge(first["disable"][0], problem.y()), judge(first["disable"][1], problem.dX()))


def _refused(layer: Split, step: str) -> None:
    """A call that is refused."""
    x = layer.problem["x"].detach().clone()
    if step == "not a number":
        x[(0,) * x.ndim] = float("nan")
    try:
        layer.hybrid(x, fhe="disable" if step == "not a number" else step)
    except Exception:  # noqa: BLE001  (how it refuses is another clause's)
        return
    raise Inconclusive("it is not refused, which another clause says")


@clause(
    "FHE-MODE-KINDS",
    """HybridFHEMode has the members TORCH, CALIBRATE, DISABLE, SIMULATE, EXECUTE and REMOTE, whose values are these
    words in lower case; modes are given as members or as values, and the model stays in the last.""",
    group="fhe",
    cases=SMALL.narrowed(values=("normal",), how=("member", "value", "set member", "set value")),
    dtypes=ONE,
    weight=0.67,
)
def test_kinds_of_modes(subject: Subject, case: QuantizedCase) -> float | None:
    kinds = subject.target.HybridFHEMode
    for word in ("torch", "calibrate", "disable", "simulate", "execute", "remote"):
        member = getattr(kinds, word.upper(), None)
        require(
            getattr(member, "value", None) == word, f"HybridFHEMode.{word.upper()} is {member!r}: expected {word!r}"
        )
    problem = Problem(case, subject.device)
    layer = Split(subject, problem, "linear").compile()
    mode: Any = kinds.DISABLE if "member" in case.how else "disable"
    if case.how.startswith("set"):
        with calling(f"set_fhe_mode({mode!r})"):
            layer.hybrid.set_fhe_mode(mode)
    else:
        run(layer.hybrid, mode, problem["x"])
    # the model itself, called by whoever has it, stays in that mode
    return judge(forward(layer.net, problem["x"]), problem.y())


@clause(
    "FHE-DEFAULT-MODE",
    "The model called without fhe runs in mode disable.",
    group="fhe",
    cases=SMALL.narrowed(values=("normal",), how=("torch", "disable")),
    dtypes=ONE,
    weight=0.34,
)
def test_default_mode(subject: Subject, case: QuantizedCase) -> float | None:
    problem = Problem(case, subject.device)
    layer = Split(subject, problem, "linear").compile()
    layer.forward(case.how)
    return judge(forward(layer.hybrid, problem["x"]), problem.y())


CHANGES = ("copy_", "bias", "load_state_dict", "assign")


@clause(
    "FHE-CHANGED",
    "A weight or bias changed after compiling is an error or gives the new result, never the old one.",
    group="fhe",
    cases=SMALL.narrowed(how=CHANGES, bias=(True,), side=("forward", "backward")),
    dtypes=TYPES,
    needs=CUSTOM,
    weight=0.67,
)
def test_weight_changed(subject: Subject, case: QuantizedCase) -> float | None:
    problem = Problem(case, subject.device)
    layer = Split(subject, problem).compile()
    before = layer.both("disable")
    names = ("bias",) if case.how == "bias" else ("weight",) if case.how == "copy_" else ("weight", "bias")
    with torch.no_grad(), calling(f"changing {' and '.join(names)} by {case.how}"):
        if case.how in ("load_state_dict", "assign"):
            state = {name: value * -2 for name, value in layer.net.state_dict().items()}
            layer.net.load_state_dict(state, assign=case.how == "assign")
        else:
            tensor = getattr(layer, names[0])
            tensor.copy_(tensor * -2)
    for name in names:
        problem.values[name] = problem.values[name] * -2
    judge(layer.both("torch")[0], problem_in_floats(problem))
    try:
        y, dX = layer.hybrid(problem["x"], fhe="disable"), layer.both("disable")[1]
    except Exception:  # noqa: BLE001  (an error is right)
        return None
    for name, a, b in zip(("y", "dX"), before, (y, dX), strict=True):
        stale = torch.equal(a, b) and not (name == "dX" and case.how == "bias")
        require(not stale, f"{name} is that of the {names[0]} before it was changed by {case.how}")
    return worst(judge(y, problem.y()), judge(dX, problem.dX()))


@clause(
    "FHE-INPUTS",
    "No mode modifies x, g, W or b, nor memory around them.",
    group="fhe",
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
    "y and dX are memory of their own: later calls leave them, and the caller may modify y in place.",
    group="fhe",
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
    "Building, compiling and running in any mode change no setting of the process and no random state.",
    group="fhe",
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
    "remote_modules holds the named modules by these names, and no others are replaced.",
    group="fhe",
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
    "A module reachable under two names is one remote module under both, whichever of them is given, or both.",
    group="fhe",
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


def problem_in_floats(problem: Problem) -> Any:
    """The float layer's output, within the rounding of its products."""
    values = problem.rows("x") @ problem.values["weight"].T
    absolute = abs(problem.rows("x")) @ abs(problem.values["weight"]).T
    if "bias" in problem.values:
        values, absolute = values + problem.values["bias"], absolute + abs(problem.values["bias"])
    unit = torch.finfo(problem.dtype).eps
    shape = problem.values["g"].shape
    allowed = unit * (abs(values) + (problem.case.k + 2) * absolute)
    expected = problem.y()
    return dataclasses.replace(expected, value=values.reshape(shape), budget=allowed.reshape(shape), terms={})
