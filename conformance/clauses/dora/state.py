"""The state of a DoRA layer, magnitude included: saving, loading, copies and conversion."""

from __future__ import annotations

import copy
import dataclasses
import io
import pickle

import torch

from conformance.cases.linear_case import LinearCase
from conformance.clauses.dora.oracle import DORA, NAMES, DoraOracle, built, oracle_of, ran
from conformance.judgement.outcomes import require
from conformance.numerics.formats import dtype_named, numbers
from conformance.specification.clause import clause
from conformance.target.adapter_tensors import MAGNITUDE, adapter_of
from conformance.target.calls import calling
from conformance.target.subject import Instance, Subject


def judged_as(instance: Instance, oracle: DoraOracle) -> float | None:
    """Judge y and every gradient of a layer by the oracle of another that it should equal."""
    layer, x = instance.module, oracle.operands.placed["x"].tensor
    adapter = {name: adapter_of(layer, name) for name in NAMES if name != "x"}
    other = Instance(layer, {"x": x.detach().clone(), **adapter}, oracle.operands, module=layer)
    for tensor in adapter.values():
        tensor.grad = None
    return oracle.judged_step(other)


@clause(
    "DORA-STATE",
    sentence="""A deepcopy, and another DoRA layer that loads the state_dict, compute the same as the original, even
    after the original has been used.""",
    cases=DORA,
    weight=0.5,
)
def test_state(subject: Subject, case: LinearCase) -> float | None:
    instance, oracle = ran(subject, case)
    way = ("state_dict", "deepcopy")[case.seed % 2]
    other, _ = built(subject, dataclasses.replace(case, seed=case.seed + 1))
    with calling(f"{way} of a DoRA layer"):
        if way == "state_dict":
            stored = io.BytesIO()
            torch.save(instance.module.state_dict(), stored)
            stored.seek(0)
            other.module.load_state_dict(torch.load(stored, weights_only=True))
        else:
            other.module = copy.deepcopy(instance.module)
    return judged_as(other, oracle)


@clause(
    "DORA-PICKLE",
    sentence="A pickled copy of a DoRA layer that has been used computes the same as the original.",
    cases=DORA,
    feature="pickling",
    weight=0.34,
)
def test_pickled(subject: Subject, case: LinearCase) -> float | None:
    instance, oracle = ran(subject, case)
    other, _ = built(subject, dataclasses.replace(case, seed=case.seed + 1))
    with calling("pickle of a DoRA layer"):
        other.module = pickle.loads(pickle.dumps(instance.module))
    return judged_as(other, oracle)


@clause(
    "DORA-TO",
    sentence="""After .to(dtype), a DoRA layer that has been used computes in that dtype, and its magnitude has that
    dtype.""",
    cases=DORA,
    dtypes=("bfloat16", "float16"),
    weight=0.5,
)
def test_conversion(subject: Subject, case: LinearCase) -> float | None:
    instance, _oracle = ran(subject, case)
    wide = subject.operands(dataclasses.replace(case, dtype="float64"))
    wide.values = instance.operands.values
    magnitude = numbers(instance.tensors["lora_magnitude"])
    with calling(f"{subject.name}(use_dora=True).to(torch.float64)"):
        instance.module.to(dtype_named("float64"))
    converted = adapter_of(instance.module, MAGNITUDE)
    require(converted.dtype == wide.dtype, f"lora_magnitude has dtype {converted.dtype} after .to(torch.float64)")
    return judged_as(instance, oracle_of(subject, wide, magnitude))
