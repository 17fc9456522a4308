"""The state of `CustomLinear`: its attributes, saving and loading, and copies."""

from __future__ import annotations

import copy
import dataclasses
import io
import pickle
from collections.abc import Callable
from typing import Any

import torch

from conformance.clauses.hybrid.frozen_layer import SMALL, Frozen, FrozenCase, custom_linear, judge_both, tensors_of
from conformance.judgement.judge import worst
from conformance.judgement.outcomes import require
from conformance.numerics.formats import dtype_named
from conformance.specification.clause import clause
from conformance.target.calls import calling
from conformance.target.subject import Subject

STATE = SMALL.narrowed(values=("integers",), bias=(True, False))


@clause(
    "HYB-ATTRIBUTES",
    sentence="CustomLinear exposes weight, bias, in_features, out_features, forward_module and backward_module.",
    cases=STATE,
    dtypes=("float32",),
    weight=0.5,
)
def test_attributes(subject: Subject, case: FrozenCase) -> float | None:
    frozen = Frozen(case, subject.device)
    layer = custom_linear(subject, frozen)
    for name, tensor in (("weight", frozen.weight), ("bias", frozen.bias)):
        with calling(f"reading CustomLinear.{name}"):
            held = getattr(layer, name)
        if tensor is None:
            require(held is None, f"CustomLinear.{name} is a {type(held).__name__}: expected None, as none was given")
        else:
            require(
                isinstance(held, torch.Tensor) and torch.equal(held.detach(), tensor),
                f"CustomLinear.{name} is not the {name} it was given",
            )
    for name, size in (("in_features", case.k), ("out_features", case.n)):
        with calling(f"reading CustomLinear.{name}"):
            features = getattr(layer, name)
        require(features == size, f"CustomLinear.{name} is {features}: expected {size}")
    for name in ("forward_module", "backward_module"):
        require(isinstance(getattr(layer, name, None), torch.nn.Module), f"CustomLinear has no module {name}")
    return None


@clause(
    "HYB-STATE",
    sentence="""The state_dict of CustomLinear holds the weight once, the bias once if there is one, and no other
    tensor.""",
    cases=STATE,
    dtypes=("float32", "bfloat16"),
    weight=0.5,
)
def test_state_dict(subject: Subject, case: FrozenCase) -> float | None:
    frozen = Frozen(case, subject.device)
    with calling("CustomLinear.state_dict()"):
        state = custom_linear(subject, frozen).state_dict()
    for name, tensor in (("weight", frozen.weight), ("bias", frozen.bias)):
        if tensor is not None:
            count = sum(v.shape == tensor.shape and torch.equal(v, tensor) for v in state.values())
            require(count == 1, f"state_dict holds the {name} {count} times: {', '.join(state)}; expected once")
    expected = 1 if frozen.bias is None else 2
    require(len(state) == expected, f"state_dict has {', '.join(state)}: expected {expected} tensors")
    return None


@clause(
    "HYB-LOAD",
    sentence="""After load_state_dict, or a change of weight and bias in place, CustomLinear computes both y and dX
    with the new values.""",
    why="Two copies of the weight, one for each product, can drift apart.",
    cases=STATE.narrowed(how=("load_state_dict", "copy_")),
    dtypes=("float32", "bfloat16"),
)
def test_weight_is_one(subject: Subject, case: FrozenCase) -> float | None:
    frozen = Frozen(case, subject.device)
    source = custom_linear(subject, frozen)
    blank = Frozen(case, subject.device)
    for name in ("weight", "bias"):
        if name in blank.placed:
            blank.placed[name].tensor.fill_(1)
    layer = custom_linear(subject, blank)
    with torch.no_grad(), calling(f"changing the weight of CustomLinear by {case.how}"):
        if case.how == "load_state_dict":
            layer.load_state_dict(source.state_dict())
        else:
            for weight in tensors_of(layer, "weight", frozen.weight):
                weight.copy_(frozen.weight)
            given = frozen.bias
            if given is not None:
                for bias in tensors_of(layer, "bias", given):
                    bias.copy_(given)
    return judge_both(layer, frozen)


def _saved(layer: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES: dict[str, Callable[[Any], Any]] = {
    "copy.deepcopy": copy.deepcopy,
    "pickle": lambda layer: pickle.loads(pickle.dumps(layer)),
    "torch.save": _saved,
}


@clause(
    "HYB-COPY",
    sentence="""A copy made by deepcopy, pickle or torch.save computes the right y and dX from its own weight, which
    both products share.""",
    cases=STATE.narrowed(how=tuple(COPIES)),
    dtypes=("float32", "bfloat16"),
)
def test_copies(subject: Subject, case: FrozenCase) -> float | None:
    frozen = Frozen(case, subject.device)
    layer = custom_linear(subject, frozen)
    with calling(f"{case.how} of CustomLinear"):
        copied = COPIES[case.how](layer)
    with torch.no_grad():
        frozen.weight.zero_()
    first = judge_both(copied, frozen)
    # both products of the copy use its one weight
    with torch.no_grad(), calling(f"changing the weight of a copy made by {case.how}"):
        for weight in tensors_of(copied, "weight", frozen.weight):
            weight.neg_()
        for bias in tensors_of(copied, "bias", frozen.bias) if frozen.bias is not None else ():
            bias.zero_()
    negated = _negated(case, subject)
    return worst(first, judge_both(copied, negated))


def _negated(case: FrozenCase, subject: Subject) -> Frozen:
    negated = Frozen(dataclasses.replace(case, bias=False), subject.device)
    negated.operands.values["weight"] = -negated.operands.values["weight"]
    return negated


@clause(
    "HYB-TO",
    sentence="After .to(dtype) CustomLinear computes both products in that dtype.",
    cases=STATE.narrowed(how=("to", "double then back")),
    dtypes=("float32", "bfloat16", "float16"),
    weight=0.5,
)
def test_to_dtype(subject: Subject, case: FrozenCase) -> float | None:
    frozen = Frozen(case, subject.device)
    layer = custom_linear(subject, Frozen(case, subject.device))
    with calling("CustomLinear.to(float64)"):
        layer = layer.to(torch.float64)
    if case.how != "to":
        with calling(f"CustomLinear.to({case.dtype})"):
            layer = layer.to(dtype_named(case.dtype))
        return judge_both(layer, frozen)
    wide = Frozen(dataclasses.replace(case, dtype="float64"), subject.device)
    same = {name: frozen.operands.values[name] for name in wide.operands.values}
    for name, placed in wide.placed.items():
        values = same[name].T if name == "weight" and case.transposed else same[name]
        placed.tensor.copy_(torch.from_numpy(values.copy()))
    wide.operands.values.update(same)
    return judge_both(layer, wide)
