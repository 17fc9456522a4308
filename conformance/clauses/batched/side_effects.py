"""Side effects of batches: memory and results that a call must not change, settings, determinism, autocast."""

from __future__ import annotations

import dataclasses

import torch

from conformance.clauses.batched.batch import MARGIN, TRAINABLE, Batch, Bound, bound, output
from conformance.clauses.batched.case import LAYOUT, SMALL, BatchedCase
from conformance.clauses.batched.oracle import Oracle
from conformance.isolation.process_state import kept
from conformance.judgement.judge import judge, worst
from conformance.judgement.operand_effects import copied, require_equal_runs, require_margins, require_unmodified
from conformance.judgement.outcomes import require
from conformance.specification.clause import clause
from conformance.target.calls import calling
from conformance.target.subject import Subject


def called(subject: Subject, batch: Batch) -> tuple[Bound, torch.Tensor]:
    """One forward pass, and a backward pass if the target is differentiable."""
    instance = bound(subject, batch)
    learns = not subject.lacks("batched_gradients")
    instance.require_grad(TRAINABLE if learns else ())
    y = instance.forward()
    if learns:
        instance.backward(y)
    return instance, y


@clause(
    "BAT-MEM-INPUTS",
    sentence="""Forward and backward do not modify x, adapter_index, scale, ranks, the upstream gradient or any
    operand.""",
    cases=SMALL.narrowed(ranks=("different", "none", "zero")),
    weight=0.5,
)
def test_batched_inputs_unmodified(subject: Subject, case: BatchedCase) -> float | None:
    batch = Batch(subject, case)
    before = {name: tensor.clone() for name, tensor in batch.metadata.items()}
    called(subject, batch)
    require_unmodified(batch.placed)
    for name, tensor in batch.metadata.items():
        require(torch.equal(tensor, before[name]), f"{name} was modified in place")
    return None


@clause(
    "BAT-MEM-MARGINS",
    sentence="Forward and backward read and write no memory outside the operands and adapter_index.",
    cases=LAYOUT,
    weight=0.5,
)
def test_batched_margins_untouched(subject: Subject, case: BatchedCase) -> float | None:
    batch = Batch(subject, case)
    instance, y = called(subject, batch)
    require_margins(batch.placed, {name: instance.gradient(name) for name in TRAINABLE if y.requires_grad})
    index = batch.metadata["adapter_index"]
    whole = index.as_strided((index.storage_offset(),), (1,), 0)
    require(not bool(whole.any()), f"memory before adapter_index was written, in the {MARGIN} integers there")
    require(not bool(torch.isnan(y).any()), "NaN from outside an operand reached y")
    return None


@clause(
    "BAT-MEM-OUTPUT",
    sentence="The caller may modify y in place: no input changes, and y is no view of one.",
    cases=SMALL.narrowed(routing=("mixed", "none", "one")),
    weight=0.5,
)
def test_batched_output_belongs_to_the_caller(subject: Subject, case: BatchedCase) -> float | None:
    batch = Batch(subject, case)
    y = output(subject, batch)
    with calling("y.zero_()"):
        y.zero_()
    require_unmodified(batch.placed, "modifying y in place")
    return judge(output(subject, batch), Oracle(batch).y)


@clause(
    "BAT-MEM-LATER",
    sentence="Later calls do not change the y of an earlier call, or the gradients that come from it.",
    cases=SMALL,
    weight=0.5,
)
def test_batched_later_calls(subject: Subject, case: BatchedCase) -> float | None:
    batch = Batch(subject, case)
    instance, oracle, learns = bound(subject, batch), Oracle(batch), not subject.lacks("batched_gradients")
    instance.require_grad(TRAINABLE if learns else ())
    y = instance.forward()
    called(subject, Batch(subject, dataclasses.replace(case, seed=case.seed + 1)))
    ratio = judge(y, oracle.y)
    if not learns:
        return ratio
    instance.backward(y)
    return worst(ratio, *(judge(instance.gradient(name), oracle.gradient(name)) for name in TRAINABLE))


@clause(
    "BAT-DET",
    sentence="Repeating a call gives the same y and the same gradients bit for bit.",
    cases=SMALL,
    weight=0.34,
)
def test_batched_determinism(subject: Subject, case: BatchedCase) -> float | None:
    runs = []
    for _ in range(2):
        instance, y = called(subject, Batch(subject, case))
        runs.append(copied({"y": y}, {name: instance.gradient(name) for name in TRAINABLE if y.requires_grad}))
    require_equal_runs(*runs)
    return None


@clause(
    "BAT-SIDE",
    sentence="Forward and backward change no setting of the process and no random state.",
    cases=SMALL,
    weight=0.25,
)
def test_batched_settings_kept(subject: Subject, case: BatchedCase) -> float | None:
    with kept("a call"):
        called(subject, Batch(subject, case))
    return None


@clause(
    "BAT-AMP",
    sentence="""Under autocast, y and the gradients are those of the same formula written with F.linear; backward runs
    outside the autocast region.""",
    cases=SMALL.narrowed(autocast=("bfloat16",)),
    dtypes=("float32",),
    feature="batched_gradients autocast",
    weight=0.5,
)
def test_batched_autocast(subject: Subject, case: BatchedCase) -> float | None:
    batch = Batch(subject, case)
    instance, oracle = bound(subject, batch), Oracle(batch)
    instance.require_grad(TRAINABLE)
    with torch.autocast(subject.device.partition(":")[0], dtype=batch.computed_in):
        y = instance.forward()
    instance.backward(y)
    return worst(judge(y, oracle.y), *(judge(instance.gradient(name), oracle.gradient(name)) for name in TRAINABLE))
