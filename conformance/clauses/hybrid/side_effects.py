"""Side effects of `CustomLinear`: memory, changed weights, global state, and results that repeat bit for bit."""

from __future__ import annotations

import dataclasses

import torch

from conformance.cases.memory_layout import LAYOUTS
from conformance.clauses.hybrid.frozen_layer import (
    SMALL,
    Frozen,
    FrozenCase,
    backward,
    custom_linear,
    forward,
    tensors_of,
)
from conformance.isolation.process_state import kept
from conformance.judgement.judge import judge, worst
from conformance.judgement.outcomes import require
from conformance.specification.clause import clause
from conformance.target.calls import calling
from conformance.target.expected_errors import refuses
from conformance.target.subject import Subject

TYPES = ("float32", "bfloat16")


def _run(subject: Subject, frozen: Frozen) -> tuple[torch.Tensor, torch.Tensor]:
    x = frozen.x.detach().requires_grad_(True)
    y = forward(custom_linear(subject, frozen), x)
    backward(y, frozen.g)
    require(x.grad is not None, "x got no gradient")
    assert x.grad is not None
    return y.detach(), x.grad


@clause(
    "HYB-INPUTS",
    sentence="Forward and backward do not modify x, g, W and b, nor the memory around them.",
    cases=SMALL.narrowed(x=LAYOUTS, g=LAYOUTS, w=LAYOUTS[:-1], lead=("2d", "3d")),
    dtypes=TYPES,
)
def test_inputs_unmodified(subject: Subject, case: FrozenCase) -> float | None:
    frozen = Frozen(case, subject.device)
    _run(subject, frozen)
    for name, placed in frozen.placed.items():
        require(not placed.contents_changed(), f"{name} was modified in place")
        require(not placed.margins_changed(), f"memory around {name} was written")
    return None


@clause(
    "HYB-OUTPUT",
    sentence="The caller may modify y in place: x does not change, and dX accounts for the modification.",
    cases=SMALL.narrowed(values=("integers",), lead=("2d", "3d", "1d")),
    dtypes=("float64", "float32"),
)
def test_output_belongs_to_caller(subject: Subject, case: FrozenCase) -> float | None:
    frozen = Frozen(case, subject.device)
    x = frozen.x.detach().requires_grad_(True)
    y = forward(custom_linear(subject, frozen), x)
    with calling("y.mul_(2) and the backward pass after it"):
        y = y.mul_(2.0)
    backward(y, frozen.g)
    require(not frozen.placed["x"].contents_changed(), "modifying y in place modified x")
    expected = dataclasses.replace(frozen.dX, name="dX through 2y", value=2 * frozen.dX.value)
    return judge(x.grad, expected)


@clause(
    "HYB-CHANGED",
    sentence="Changing W in place between forward and backward makes backward raise, as in eager PyTorch.",
    cases=SMALL.narrowed(values=("integers",), how=("mul_", "copy_", "load_state_dict")),
    dtypes=TYPES,
    weight=0.5,
)
def test_weight_changed_before_backward(subject: Subject, case: FrozenCase) -> float | None:
    frozen = Frozen(case, subject.device)
    layer = custom_linear(subject, frozen)
    x = frozen.x.detach().requires_grad_(True)
    y = forward(layer, x)
    with torch.no_grad(), calling(f"changing CustomLinear.weight by {case.how}"):
        if case.how == "load_state_dict":
            layer.load_state_dict({name: value + 1 for name, value in layer.state_dict().items()})
        for weight in tensors_of(layer, "weight", frozen.weight) if case.how != "load_state_dict" else ():
            weight.copy_(weight + 1) if case.how == "copy_" else weight.mul_(2)
    refuses(
        f"backward after CustomLinear.weight was changed by {case.how}",
        lambda: torch.autograd.backward([y], [frozen.g]),
        types=(RuntimeError, ValueError),
    )
    return None


@clause(
    "HYB-REPEAT",
    sentence="Two runs of forward and backward on equal operands give the same bits.",
    cases=SMALL.narrowed(values=("normal",)),
    dtypes=TYPES,
    weight=0.5,
)
def test_deterministic(subject: Subject, case: FrozenCase) -> float | None:
    first, second = (_run(subject, Frozen(case, subject.device)) for _ in range(2))
    for name, a, b in zip(("y", "dX"), first, second, strict=True):
        require(torch.equal(a, b), f"{name} differs between two identical runs")
    return None


@clause(
    "HYB-MEM-LATER",
    sentence="Later calls do not change the y, dX or saved tensors of an earlier call.",
    why="A buffer that is reused between calls gives the first call the second one's values.",
    cases=SMALL,
    dtypes=TYPES,
    weight=0.5,
)
def test_later_calls(subject: Subject, case: FrozenCase) -> float | None:
    frozen, later = (Frozen(dataclasses.replace(case, seed=case.seed + i), subject.device) for i in (0, 1))
    layer = custom_linear(subject, frozen)
    x, other = (operands.x.detach().requires_grad_(True) for operands in (frozen, later))
    y, y_other = forward(layer, x), forward(layer, other)
    backward(y, frozen.g)
    backward(y_other, later.g)
    return worst(judge(y, frozen.y), judge(x.grad, frozen.dX))


@clause(
    "HYB-MEM-REFILL",
    sentence="After x, g, W and b get new values in place, all of them or only one, a call gives the new result.",
    why="A cache that is keyed by the address of a tensor, or by a part of the operands, returns the old one.",
    cases=SMALL,
    dtypes=TYPES,
    weight=0.5,
)
def test_refilled(subject: Subject, case: FrozenCase) -> float | None:
    frozen = Frozen(case, subject.device)
    layer = custom_linear(subject, frozen)
    x = frozen.x.detach().requires_grad_(True)
    backward(forward(layer, x), frozen.g)
    filled = {"x": [x], "g": [frozen.g]}
    for name in ("weight", "bias") if case.bias else ("weight",):
        filled[name] = tensors_of(layer, name, frozen.placed[name].tensor)
    now, ratios = frozen.operands.values, []
    # integers of two draws together may be no exact integers
    alone = () if frozen.operands.exact else tuple((name,) for name in filled)
    for i, names in enumerate((tuple(filled), *alone)):
        new = Frozen(dataclasses.replace(case, seed=case.seed + 1 + i), subject.device)
        new.operands.values |= {name: value for name, value in now.items() if name not in names}
        with torch.no_grad():
            for name in names:
                for tensor in filled[name]:
                    tensor.copy_(new.placed[name].tensor)
        x.grad, now = None, new.operands.values
        y = forward(layer, x)
        backward(y, frozen.g)
        ratios += [judge(y, new.y), judge(x.grad, new.dX)]
    return worst(*ratios)


@clause(
    "HYB-SIDE-GLOBAL",
    sentence="Forward and backward change no global setting and no random state.",
    cases=SMALL,
    dtypes=("float32",),
    weight=0.25,
)
def test_settings_kept(subject: Subject, case: FrozenCase) -> float | None:
    frozen = Frozen(case, subject.device)
    layer = custom_linear(subject, frozen)
    x = frozen.x.detach().requires_grad_(True)
    with kept("the forward pass"):
        y = forward(layer, x)
    with kept("the backward pass"):
        backward(y, frozen.g)
    return None
