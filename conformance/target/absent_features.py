"""The check of features that a target declares absent: each is refused, has no effect or is right."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable, Mapping

import torch

from conformance.cases.linear_case import LinearCase
from conformance.cases.operands import Operands
from conformance.judgement.judge import judge
from conformance.judgement.linear_oracle import LinearOracle
from conformance.judgement.outcomes import Refused, Violation, require
from conformance.numerics.dtypes import ADAPTER_DTYPES
from conformance.specification.features import FEATURES
from conformance.target.adapter_tensors import adapter_of
from conformance.target.calls import calling
from conformance.target.signature import arguments_for, takes
from conformance.target.subject import TRAINABLE, Instance, Subject, frozen_linear

SMALL = LinearCase(m=5, k=16, n=7, r=3, scale=2.0, bias=True, values="normal")


def half_working(subject: Subject, feature: str, dtype: str) -> str:
    """What a subject does with a feature that it declares absent, if that is neither an error nor right; else empty."""
    check = CHECKS.get(feature)
    if check is None or (feature in OF_LAYERS and not subject.is_layer):
        return ""
    option = FEATURES[feature].option
    if option and takes(subject.thing, option) is None:
        return ""
    try:
        with torch.random.fork_rng(devices=[]):
            check(subject, subject.within_limits(dataclasses.replace(SMALL, dtype=dtype)))
    except Refused:
        return ""
    except Violation as found:
        if found.__cause__ is not None:  # an error of the target: it refuses
            return ""
        seen = " ".join(str(found).split("\n")[0].split())
        wrong = "its use is neither refused nor right: " if seen.startswith("worst ") else ""
        return f"feature {feature!r} is declared absent, but {wrong}{seen}"
    return ""


def _merges(subject: Subject, case: LinearCase) -> None:
    instance = subject.build(subject.operands(case))
    if not hasattr(instance.module, "merge"):
        return
    before = instance.tensors["weight"].detach().clone()
    with calling("merge()"):
        instance.module.merge()
    with calling("reading weight"):
        after = getattr(instance.module, "weight", instance.tensors["weight"])
    require(torch.equal(after.detach(), before), "merge() changes the weight")


def _pickles(subject: Subject, case: LinearCase) -> None:
    instance = subject.build(subject.operands(case))
    with calling("copying by pickle"):
        copied = pickle.loads(pickle.dumps(instance.module))
    _judge_output(dataclasses.replace(instance, call=copied, module=copied), "y of a pickled copy")


def _changes_its_output(subject: Subject, case: LinearCase) -> None:
    instance = subject.build(subject.operands(case))
    instance.require_grad(TRAINABLE)
    y = instance.forward()
    with calling("y.mul_(2)"):
        y = y.mul_(2.0)
    instance.backward(y)
    oracle = _oracle(instance)
    for name in TRAINABLE:
        once = oracle.gradient(name)
        assert once.budget is not None
        twice = dataclasses.replace(once, value=2 * once.value, budget=2 * once.budget, terms={})
        judge(instance.gradient(name), dataclasses.replace(twice, name=f"{once.name} after y.mul_(2)"))


def _runs_under_autocast(subject: Subject, case: LinearCase) -> None:
    instance = subject.build(subject.operands(dataclasses.replace(case, dtype="float32", autocast="bfloat16")))
    instance.require_grad(TRAINABLE)
    with torch.autocast(subject.device.partition(":")[0], dtype=torch.bfloat16):
        y = instance.forward()
    instance.backward(y)
    oracle = _oracle(instance)
    judge(y, dataclasses.replace(oracle.y, name="y under autocast", dtype=y.dtype))
    for name in TRAINABLE:
        one = oracle.gradient(name)
        judge(instance.gradient(name), dataclasses.replace(one, name=f"{one.name} under autocast"))


def _takes_an_adapter_dtype(subject: Subject, case: LinearCase) -> None:
    operands = subject.operands(dataclasses.replace(case, adapter=ADAPTER_DTYPES[case.dtype]))
    wanted = {"dim": case.r, "alpha": case.r, "lora_dtype": operands.adapter_dtype}
    with calling(f"{subject.name}(lora_dtype={operands.adapter_dtype})"):
        layer = subject.thing(frozen_linear(operands), **arguments_for(subject.thing, wanted))
    if adapter_of(layer, "lora_A").dtype == operands.adapter_dtype:  # else the argument has no effect
        _judge_output(subject.build(operands), "y with an adapter of another dtype")


def _saves_memory(subject: Subject, case: LinearCase) -> None:
    instance = subject.build(subject.operands(case), use_memory_efficient_lora=True)
    _judge_output(instance, "y with use_memory_efficient_lora=True")


def _judge_output(instance: Instance, name: str) -> None:
    with torch.no_grad():
        judge(instance.forward(), dataclasses.replace(_oracle(instance).y, name=name))


def _oracle(instance: Instance) -> LinearOracle:
    operands: Operands = instance.operands
    return LinearOracle(operands)


CHECKS: Mapping[str, Callable[[Subject, LinearCase], None]] = {
    "merging": _merges,
    "pickling": _pickles,
    "inplace_output": _changes_its_output,
    "autocast": _runs_under_autocast,
    "adapter_dtype": _takes_an_adapter_dtype,
    "memory_efficient": _saves_memory,
}
OF_LAYERS = ("merging", "pickling", "memory_efficient", "adapter_dtype")
