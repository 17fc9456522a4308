"""Sequences of calls: micro-batches of any size, inference before training, a call after autocast, threads."""

from __future__ import annotations

import dataclasses
import threading

import numpy as np
import torch

from conformance.cases.linear_case import LinearCase
from conformance.cases.operand_values import weighed
from conformance.clauses.linear_and_layer.case_spaces import SMALL
from conformance.clauses.linear_and_layer.judged_results import judge_gradients, oracle_for, under_autocast
from conformance.judgement.judge import judge, worst
from conformance.judgement.outcomes import Inconclusive, Refused, Violation
from conformance.numerics.formats import dtype_named
from conformance.specification.clause import clause
from conformance.target.calls import calling
from conformance.target.subject import TRAINABLE, Subject


@clause(
    "LIN-BWD-MICRO",
    "LAY-BWD-MICRO",
    sentence="""The gradients of micro-batches of different sizes through one layer add up, and the set of operands
    that require grad may change between micro-batches.""",
    cases=SMALL.narrowed(values=("integers",), m=(2, 3, 17), lead=("2d", "3d"), training=(True,)),
    weight=0.34,
)
def test_gradients_of_micro_batches(subject: Subject, case: LinearCase) -> float | None:
    first = subject.operands(case)
    instance = subject.build(first)
    instance.require_grad(("lora_B",))
    y = instance.forward()
    instance.backward(y)
    ratios = [judge(y, oracle_for(subject, first).y)]
    wanted = {"lora_A": np.zeros_like(first.values["lora_A"]), "lora_B": oracle_for(subject, first).dB.value}
    for i, m in enumerate((case.m + 3, 1)):
        # other tokens with the same weights: integers of the same density, so that they stay exact
        other = subject.operands(dataclasses.replace(case, m=m, seed=case.seed + 1 + i))
        for name in ("weight", "bias", "lora_A", "lora_B"):
            if name in first.values:
                other.values[name] = first.values[name]
        if weighed({"bias": np.zeros(case.n), **other.values}, other.scale)[0] > first.exact_limit:
            raise Inconclusive("an intermediate is no exact integer of the dtype")
        instance.operands, instance.tensors["x"] = other, other.placed["x"].tensor
        instance.require_grad(TRAINABLE)
        y = instance.forward()
        instance.backward(y)
        oracle = oracle_for(subject, other)
        ratios += [judge(y, oracle.y), judge(instance.gradient("x"), oracle.dX)]
        for name, before in wanted.items():
            expected = oracle.gradient(name)
            wanted[name] = total = before + expected.value
            if np.abs(total).max() > first.exact_limit:
                raise Inconclusive("a sum of gradients is no exact integer of the dtype")
            name_of_sum = f"{expected.name} of {i + 2} micro-batches"
            sums = dataclasses.replace(expected, name=name_of_sum, value=total, terms={}, certified=False)
            ratios.append(judge(instance.gradient(name), sums))
    return worst(*ratios)


@clause(
    "LIN-MODE-INFERENCE",
    "LAY-MODE-INFERENCE",
    sentence="""Calls under inference_mode or no_grad use the current values of the operands, and training after
    such calls is right.""",
    why="A layer that caches weights under inference_mode may go on using the cached ones afterwards.",
    cases=SMALL,
    weight=0.34,
)
def test_inference_before_training(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(case)
    instance = subject.build(operands)
    instance.require_grad(TRAINABLE)
    mode = (torch.inference_mode, torch.no_grad)[case.seed % 2]
    with mode():
        ratios = [judge(instance.forward(), oracle_for(subject, operands).y)]
    new = subject.operands(dataclasses.replace(case, seed=case.seed + 1))
    filled = {**instance.tensors, "g": operands.placed["g"].tensor}
    with torch.no_grad():
        for name, tensor in filled.items():
            tensor.copy_(new.placed[name].tensor)
    oracle = oracle_for(subject, new)
    with mode():
        again = dataclasses.replace(oracle.y, name=f"y of new values under {mode.__name__}")
        ratios.append(judge(instance.forward(), again))
    y = instance.forward()
    instance.backward(y)
    return worst(*ratios, judge(y, oracle.y), judge_gradients(instance, oracle))


@clause(
    "LIN-MODE-THREAD",
    "LAY-MODE-THREAD",
    sentence="""Forward and backward give the same results in a thread other than the one that built the layer or
    its operands.""",
    cases=SMALL,
    weight=0.17,
)
def test_another_thread(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(case)
    instance = subject.build(operands)
    instance.require_grad(TRAINABLE)
    done: list[torch.Tensor | BaseException] = []

    def call() -> None:
        try:
            y = instance.forward()
            instance.backward(y)
            done.append(y)
        except BaseException as error:  # noqa: BLE001  (raised again where it is judged)
            done.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    y = done[0]
    if isinstance(y, BaseException):
        raise y
    oracle = oracle_for(subject, operands)
    return worst(judge(y, oracle.y), judge_gradients(instance, oracle))


@clause(
    "LIN-MEM-SAVED",
    "LAY-MEM-SAVED",
    sentence="""If lora_A, lora_B or x is changed in place between forward and backward, backward raises or uses the
    values of the forward pass.""",
    cases=SMALL.narrowed(values=("integers", "normal"), training=(True,)),
    level="SHOULD",  # without autograd's version check training is wrong only if something writes there
    weight=0.5,
)
def test_changed_before_backward(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(case)
    instance = subject.build(operands)
    instance.require_grad(TRAINABLE)
    y = instance.forward()
    with torch.no_grad():
        instance.tensors[TRAINABLE[case.seed % 3]].add_(1)
    try:
        instance.backward(y)
    except Violation as violation:
        if isinstance(violation.__cause__, RuntimeError):
            return None  # as autograd itself does
        raise
    return judge_gradients(instance, oracle_for(subject, operands))


@clause(
    "LIN-AMP-ENTRY",
    "LAY-AMP-ENTRY",
    sentence="""Under autocast to float16 or bfloat16, x may already have that dtype, unless the call raises
    NotImplementedError; after the region, the layer computes in its own dtype again.""",
    cases=SMALL.narrowed(autocast=("float16", "bfloat16"), training=(True,), values=("integers", "normal", "positive")),
    dtypes=("float32",),
    feature="autocast",
    weight=0.67,
)
def test_autocast_of_what_it_made(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(case)
    instance = subject.build(operands)
    x, low = instance.tensors["x"], operands.computed_in
    narrow = bool(case.seed % 2)
    if narrow:
        instance.tensors["x"] = x.detach().to(low)
    instance.require_grad(TRAINABLE)
    try:
        with torch.autocast(subject.device.partition(":")[0], dtype=low):
            y = instance.forward()
    except Refused:
        return None  # the target may lack a kernel for this dtype; AMP judges the dtype it must have
    instance.backward(y)
    oracle = oracle_for(subject, operands)
    dX = dataclasses.replace(oracle.dX, dtype=low) if narrow else oracle.dX
    ratios = [judge(instance.gradient("x"), dX), judge_gradients(instance, oracle, ("lora_A", "lora_B"))]
    if subject.has_base:  # without a base, the output dtype is an argument
        ratios.append(judge(y, under_autocast(subject, oracle.y, instance, y)))
    plain = subject.operands(dataclasses.replace(case, autocast="off"))
    instance.operands, instance.tensors["x"] = plain, plain.placed["x"].tensor
    with torch.no_grad(), calling("new values of the operands"):
        for name, tensor in instance.tensors.items():
            tensor.copy_(plain.placed[name].tensor)
            tensor.grad = None
    instance.require_grad(TRAINABLE)
    y = instance.forward()
    instance.backward(y)
    after = oracle_for(subject, plain)
    wide = dataclasses.replace(after.y, name=f"y after autocast to {dtype_named(case.autocast)}")
    return worst(*ratios, judge(y, wide), judge_gradients(instance, after))
