"""The state of a layer: saving, loading, names, copies and conversion, before and after use."""

from __future__ import annotations

import copy
import dataclasses
import io
import pickle

import torch

from conformance.cases.linear_case import LinearCase
from conformance.clauses.layer.construction import WITH_BIAS
from conformance.clauses.layer.equal_layer import same_results
from conformance.clauses.linear_and_layer.case_spaces import SMALL
from conformance.judgement.outcomes import require
from conformance.numerics.formats import dtype_named
from conformance.specification.clause import clause
from conformance.specification.features import meant
from conformance.target.adapter_tensors import adapter_of
from conformance.target.calls import calling
from conformance.target.subject import TRAINABLE, Instance, Subject


@clause(
    "LAY-STATE",
    sentence="A layer that loads the state_dict of another layer of the same shape computes the same as that layer.",
    cases=SMALL,
    weight=0.34,
)
def test_state_dict(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(case)
    instance = subject.build(operands)
    blank = subject.operands(dataclasses.replace(case, seed=case.seed + 1))
    other = subject.build(blank)
    with calling("state_dict, torch.save, torch.load and load_state_dict"):
        stored = io.BytesIO()
        torch.save(instance.module.state_dict(), stored)
        stored.seek(0)
        other.module.load_state_dict(torch.load(stored, weights_only=True))
    return same_results(subject, instance, other.module, "the loaded layer")


@clause(
    "LAY-STATE-NAMES",
    sentence="""The state_dict holds exactly weight, bias, lora_A.weight and lora_B.weight; under other names, exactly
    these four tensors.""",
    cases=WITH_BIAS,
    level="SHOULD",
    dtypes=("float32",),
    feature="state_names",
    weight=0.2,
)
def test_state_dict_names(subject: Subject, case: LinearCase) -> float | None:
    with calling("state_dict"):
        found = subject.build(subject.operands(case)).module.state_dict()
    names, wanted = sorted(found), ["bias"] * case.bias + ["lora_A.weight", "lora_B.weight", "weight"]
    if subject.follows("state_names", "other"):
        held = ", ".join(f"{name} {list(value.shape)}" for name, value in found.items())
        sizes = sorted(sorted(value.shape) for value in found.values())  # a matrix may be kept transposed
        shapes = ([case.n],) * case.bias + ([case.n, case.k], [case.r, case.k], [case.n, case.r])
        expected = sorted(map(sorted, shapes))
        parts = "W, b, lora_A and lora_B" if case.bias else "W, lora_A and lora_B"
        require(sizes == expected, f"state_dict has {held}: expected one tensor each for {parts}")
        return None
    other = meant("state_names", "other") if len(names) == len(wanted) else ""
    require(names == wanted, f"state_dict has the keys {names}: expected {wanted}{other}")
    return None


@clause(
    "LAY-COPY",
    sentence="A layer copied by deepcopy computes the same and shares no memory with the original.",
    cases=SMALL,
    weight=0.5,
)
def test_copies(subject: Subject, case: LinearCase) -> float | None:
    instance = subject.build(subject.operands(case))
    with calling(f"copying a {subject.name}"):
        other = copy.deepcopy(instance.module)
    ratio = same_results(subject, instance, other, "the copy")
    with torch.no_grad():
        adapter_of(other, "lora_A").add_(1)
    expected = instance.operands.placed["lora_A"].tensor
    same = torch.equal(instance.tensors["lora_A"].detach(), expected)
    require(same, "changing the copy's lora_A changed the layer's")
    return ratio


@clause(
    "LAY-TO",
    sentence="After .to(dtype) the layer computes in that dtype.",
    cases=SMALL.narrowed(values=("integers",)),
    dtypes=("bfloat16", "float16"),
    weight=0.34,
)
def test_conversion(subject: Subject, case: LinearCase) -> float | None:
    instance = subject.build(subject.operands(case))
    wide = subject.operands(dataclasses.replace(case, dtype="float64"))
    # the small integers of the 16-bit case are the same numbers in float64
    wide.values = instance.operands.values
    with calling(f"{subject.name}.to(torch.float64)"):
        module = instance.module.to(dtype_named("float64"))
    converted = Instance(module, {"x": wide.placed["x"].tensor}, wide, module=module)
    return same_results(subject, converted, module, "the converted layer")


def used(subject: Subject, case: LinearCase) -> Instance:
    """A layer that has run one forward pass under no_grad, then one forward and backward pass."""
    instance = subject.build(subject.operands(case))
    instance.require_grad(TRAINABLE)
    with torch.no_grad():
        instance.forward()
    instance.backward(instance.forward())
    return instance


@clause(
    "LAY-PICKLE",
    sentence="A pickled copy of a layer, whether the layer has been used or not, computes the same as the layer.",
    cases=SMALL,
    feature="pickling",
    weight=0.5,
)
def test_pickled_copies(subject: Subject, case: LinearCase) -> float | None:
    instance = used(subject, case) if case.seed % 2 else subject.build(subject.operands(case))
    with calling(f"copying a {subject.name} by pickle"):
        other = pickle.loads(pickle.dumps(instance.module))
    for parameter in other.parameters():
        parameter.grad = None
    return same_results(subject, instance, other, "the copy")
