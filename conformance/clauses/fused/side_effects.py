"""Side effects of fused blocks: memory and results that a call must not change, settings, determinism."""

from __future__ import annotations

import dataclasses

import torch

from conformance.clauses.fused.block import Block, bound, run
from conformance.clauses.fused.case import LAYOUT, SMALL, FusedCase
from conformance.clauses.fused.forward import judged_outputs
from conformance.clauses.fused.oracle import Oracle
from conformance.clauses.fused.widths_and_sizes import judged
from conformance.isolation.process_state import kept
from conformance.judgement.judge import judge, worst
from conformance.judgement.operand_effects import copied, require_equal_runs, require_margins, require_unmodified
from conformance.judgement.outcomes import require
from conformance.specification.clause import clause
from conformance.target.calls import calling
from conformance.target.subject import Subject


@clause(
    "FUS-MEM-INPUTS",
    sentence="Forward and backward do not modify x, the upstream gradients or any operand.",
    cases=SMALL,
    weight=0.5,
)
def test_fused_inputs_unmodified(subject: Subject, case: FusedCase) -> float | None:
    block = Block(subject, case)
    run(subject, block)
    require_unmodified(block.placed)
    return None


@clause(
    "FUS-MEM-MARGINS",
    sentence="Forward and backward read and write no memory outside the operands.",
    cases=LAYOUT,
    weight=0.5,
)
def test_fused_margins_untouched(subject: Subject, case: FusedCase) -> float | None:
    block = Block(subject, case)
    instance = run(subject, block)
    require_margins(block.placed, {name: instance.gradient(name) for name in block.trainable})
    return None


@clause(
    "FUS-MEM-OUTPUT",
    sentence="""The caller may modify any output in place: no input and no other output changes, and the gradients
    are those of the modified outputs.""",
    cases=SMALL,
    weight=0.5,
)
def test_fused_outputs_belong_to_the_caller(subject: Subject, case: FusedCase) -> float | None:
    block = Block(subject, case)
    instance = bound(subject, block)
    instance.require_grad(block.trainable)
    ys = instance.forward()
    before = {name: y.detach().clone() for name, y in ys.items()}
    chosen = tuple(ys)[case.seed % len(ys)]
    with calling(f"{chosen}.zero_()"):
        ys[chosen] = ys[chosen].zero_()
    for name, y in ys.items():
        if name != chosen:
            require(torch.equal(y.detach(), before[name]), f"modifying {chosen} in place modified {name}")
    require_unmodified(block.placed, f"modifying {chosen} in place")
    instance.backward(ys)
    oracle, ratios = Oracle(block).only(tuple(name for name in ys if name != chosen)), []
    for name in block.trainable:
        gradient, expected = instance.gradient(name), oracle.gradient(name)
        if expected.value.any():
            ratios.append(judge(gradient, expected))
        elif gradient is not None:
            require(not bool(gradient.any()), f"{name} got a gradient from {chosen}, which was set to zero")
    return worst(*ratios)


@clause(
    "FUS-MEM-LATER",
    sentence="""Later calls do not change the outputs of an earlier call, the tensors it saved for backward, or its
    gradients.""",
    cases=SMALL,
    weight=0.34,
)
def test_fused_later_calls(subject: Subject, case: FusedCase) -> float | None:
    block = Block(subject, case)
    instance = bound(subject, block)
    instance.require_grad(block.trainable)
    ys = instance.forward()
    run(subject, Block(subject, dataclasses.replace(case, seed=case.seed + 1)))
    instance.backward(ys)
    oracle = Oracle(block)
    gradients = (judge(instance.gradient(name), oracle.gradient(name)) for name in block.trainable)
    return worst(judged_outputs(ys, oracle), *gradients)


@clause(
    "FUS-DET", sentence="Repeating a call gives the same outputs and gradients bit for bit.", cases=SMALL, weight=0.34
)
def test_fused_determinism(subject: Subject, case: FusedCase) -> float | None:
    runs = []
    for _ in range(2):
        block = Block(subject, case)
        instance = bound(subject, block)
        instance.require_grad(block.trainable)
        ys = instance.forward()
        instance.backward(ys)
        runs.append(copied(ys, {name: instance.gradient(name) for name in block.trainable}))
    require_equal_runs(*runs)
    return None


@clause(
    "FUS-SIDE",
    sentence="Forward and backward change no setting of the process and no random state.",
    cases=SMALL,
    weight=0.25,
)
def test_fused_settings_kept(subject: Subject, case: FusedCase) -> float | None:
    block = Block(subject, case)
    instance = bound(subject, block)
    instance.require_grad(block.trainable)
    with kept("the forward pass"):
        ys = instance.forward()
    with kept("the backward pass"):
        instance.backward(ys)
    return None


@clause(
    "FUS-MEM-REFILL",
    sentence="""When the operands get new values in place, all of them or only one, the next call gives the results of
    the new values: nothing is cached by the address or the version of a part of them.""",
    cases=SMALL,
    dtypes=("float32", "bfloat16"),
    weight=0.5,
)
def test_fused_refilled(subject: Subject, case: FusedCase) -> float | None:
    first = Block(subject, case)
    instance, ratios = run(subject, first), []
    # three cases together refill the operands of each projection; integers of two draws may be no exact integers
    own = f"{first.names[case.seed % len(first.names)]}."
    alone = [name for name in instance.tensors if name == "x" or name.startswith(own)]
    rounds = (tuple(first.placed), *((name,) for name in alone if case.values != "integers"))
    for i, names in enumerate(rounds):
        new = Block(subject, dataclasses.replace(case, seed=case.seed + 1 + i))
        new.values |= {name: value for name, value in instance.block.values.items() if name not in names}
        with torch.no_grad():
            for name, placed in first.placed.items():
                if name in names:
                    placed.tensor.copy_(new.placed[name].tensor)
                placed.tensor.grad = None
        instance.block = new
        ratios.append(judged(instance))
    return worst(*ratios)
