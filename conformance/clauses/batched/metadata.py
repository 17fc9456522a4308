"""Repeated calls with other metadata: other indices, ranks, scales and numbers of adapters, compiled and eager."""

from __future__ import annotations

import dataclasses
import warnings

import torch

from conformance.clauses.batched.batch import TRAINABLE, Batch, Bound, bound, output
from conformance.clauses.batched.case import NORMAL, BatchedCase
from conformance.clauses.batched.oracle import Oracle
from conformance.judgement.judge import judge, worst
from conformance.specification.clause import clause
from conformance.target.subject import Subject

GIVEN = NORMAL.narrowed(ranks=("different", "full", "zero"))
STEPS = ("adapter_index", "scale", "ranks")


def refilled(instance: Bound, new: Batch, names: tuple[str, ...]) -> None:
    """Copy the new batch's values into the operands and metadata of these names, in place."""
    with torch.no_grad():
        for name in names:
            held = instance.metadata if name in instance.metadata else instance.tensors
            source = new.metadata[name] if name in new.metadata else new.placed[name].tensor
            held[name].copy_(source)


@clause(
    "BAT-META-REFILL",
    sentence="""When adapter_index, scale or ranks get new values in place, one after the other, the next call uses the
    new values: no index, rank, scale or sorted order of an earlier call is kept.""",
    why="Serving libraries write each batch's metadata into the buffers of the batch before.",
    cases=GIVEN,
)
def test_metadata_refilled(subject: Subject, case: BatchedCase) -> float | None:
    instance, ratios = bound(subject, Batch(subject, case)), []
    with torch.no_grad():
        ratios.append(judge(instance.forward(), Oracle(instance.batch).y))
        routing = "mixed" if case.routing != "mixed" else "alternating"
        other = dataclasses.replace(case, seed=case.seed + 1, routing=routing, scale=case.scale * 2)
        for name in STEPS:
            new, source = Batch(subject, case), Batch(subject, other)
            before = instance.batch
            new.index, new.scales, new.ranks = before.index, before.scales, before.ranks
            if name == "adapter_index":
                new.index = source.index
            elif name == "scale":
                new.scales = [2 * scale for scale in before.scales[::-1]]
            else:
                new.ranks = before.ranks // 2
            refilled(instance, new, (name,))
            instance.batch = new
            ratios.append(judge(instance.forward(), Oracle(new).y))
    return worst(*ratios)


@clause(
    "BAT-META-ADAPTERS",
    sentence="""When lora_A and lora_B get new values in place, the next call uses them: an adapter that is loaded into
    the place of another has no effect of the other.""",
    cases=GIVEN,
    dtypes=("float32", "bfloat16"),
    weight=0.5,
)
def test_adapters_refilled(subject: Subject, case: BatchedCase) -> float | None:
    instance, new = bound(subject, Batch(subject, case)), Batch(subject, dataclasses.replace(case, seed=case.seed + 1))
    with torch.no_grad():
        first = judge(instance.forward(), Oracle(instance.batch).y)
        refilled(instance, new, tuple(instance.tensors) + tuple(instance.metadata))
        return worst(first, judge(instance.forward(), Oracle(new).y))


@clause(
    "BAT-META-COUNT",
    sentence="""Later calls may have more or fewer rows, adapters and ranks than the first: each result is that of its
    own operands.""",
    cases=NORMAL,
    weight=0.5,
)
def test_other_counts(subject: Subject, case: BatchedCase) -> float | None:
    ratios = []
    for seed, (rows, adapters) in enumerate(((case.m, case.adapters), (case.m + 3, case.adapters + 2), (1, 1))):
        batch = Batch(subject, dataclasses.replace(case, seed=case.seed + seed, m=rows, adapters=adapters))
        ratios.append(judge(output(subject, batch), Oracle(batch).y))
    return worst(*ratios)


@clause(
    "BAT-META-COMPILE",
    sentence="""Under torch.compile, y and the gradients are the same; also for other indices, ranks, scales and numbers
    of rows and adapters than those of the compiled call.""",
    cases=NORMAL.narrowed(
        m=(5,),
        k=(17,),
        n=(5,),
        r=(3,),
        adapters=(2,),
        routing=("mixed",),
        ranks=("different", "none"),
        scale=(2.0,),
        scales=("different",),
        bias=(True,),
        index=("int64",),
    ),
    dtypes=("float32",),
    weight=0.05,
)
def test_batched_compiled(subject: Subject, case: BatchedCase) -> float | None:
    torch.compiler.reset()
    # aot_eager captures and partitions the graphs as every backend does, without generating code
    compiled = torch.compile(subject.thing, backend="aot_eager")
    ratios = []
    for seed, adapters in enumerate((case.adapters, case.adapters, case.adapters + 1)):
        other = dataclasses.replace(case, seed=case.seed + seed, adapters=adapters, m=case.m + 2 * (seed // 2))
        instance = bound(subject, Batch(subject, other))
        instance.call = compiled
        learns = not subject.lacks("batched_gradients")
        instance.require_grad(TRAINABLE if learns else ())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler's warnings do not concern results
            y = instance.forward()
            oracle = Oracle(instance.batch)
            ratios.append(judge(y, oracle.y))
            if learns:
                instance.backward(y)
                ratios += [judge(instance.gradient(name), oracle.gradient(name)) for name in TRAINABLE]
    return worst(*ratios)
