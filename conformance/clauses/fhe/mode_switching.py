"""Switching the modes of a split model, and weights that change after compile_model."""

from __future__ import annotations

from typing import Any

import torch

from conformance.clauses.fhe.quantized_case import SMALL, Problem, QuantizedCase, problem_in_floats
from conformance.clauses.fhe.split_model import Split, run
from conformance.clauses.hybrid.frozen_layer import forward
from conformance.judgement.judge import judge, worst
from conformance.judgement.outcomes import Inconclusive, require
from conformance.specification.clause import clause
from conformance.target.calls import calling
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
    sentence="""Switching modes leaves no state: after calls in other modes, refused calls, or calls on other inputs,
    modes torch and disable give the same bits as before.""",
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
    """Make a call that the target must refuse."""
    x = layer.problem["x"].detach().clone()
    if step == "not a number":
        x[(0,) * x.ndim] = float("nan")
    try:
        layer.hybrid(x, fhe="disable" if step == "not a number" else step)
    except Exception:  # noqa: BLE001  (another clause judges the error)
        return
    raise Inconclusive("the call is not refused, which another clause judges")


@clause(
    "FHE-MODE-KINDS",
    sentence="""HybridFHEMode has the members TORCH, CALIBRATE, DISABLE, SIMULATE, EXECUTE and REMOTE, whose values
    are these words in lower case. A mode may be given as a member or as a value, and the model stays in the mode that
    was given last.""",
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
    # a direct call of the inner model runs in that mode too
    return judge(forward(layer.net, problem["x"]), problem.y())


@clause(
    "FHE-DEFAULT-MODE",
    sentence="A call without the argument fhe runs in mode disable, whatever mode the last call had.",
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
    sentence="""If weight or bias change after compile_model, a call gives the result of the new values or raises an
    error; it never gives the old result.""",
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
    except Exception:  # noqa: BLE001  (an error is allowed)
        return None
    for name, a, b in zip(("y", "dX"), before, (y, dX), strict=True):
        stale = torch.equal(a, b) and not (name == "dX" and case.how == "bias")
        require(not stale, f"{name} is that of the {names[0]} before it was changed by {case.how}")
    return worst(judge(y, problem.y()), judge(dX, problem.dX()))
