"""Data parallelism: each rank has rows of its own, under DistributedDataParallel or `fully_shard`."""

from __future__ import annotations

import dataclasses

import torch

from conformance.cases.case import Space
from conformance.cases.operands import Operands
from conformance.clauses.distributed.rank_operands import DTYPES, RANKS, RanksCase, judge_all, oracles, parts, summed
from conformance.clauses.distributed.ranks import on_ranks
from conformance.clauses.distributed.wrapped_layer import ADAPTER, gradients, step, whole, without_sync, wrapped
from conformance.judgement.judge import worst
from conformance.judgement.linear_oracle import Expected
from conformance.numerics.formats import Array
from conformance.specification.clause import clause
from conformance.target.subject import Subject

LAYERS = ("LinearLoRA", "TritonLinearLoRA")
BOTH = ("ddp", "fsdp")
EXACT = RANKS.narrowed(values=("integers",), strategy=BOTH, bias=(True,))
RATE = 0.25  # of the optimiser; a power of two keeps what is exact exact


def judge_step(subject: Subject, case: RanksCase, strategy: str) -> float | None:
    """One forward and backward of every rank on its rows: y and dX of these, dA and dB the mean over ranks."""
    given = parts(subject.operands(case), "m", case.world)
    answers = on_ranks(case.world, lambda rank: step(wrapped(subject, given[rank], strategy)))
    expected, share = oracles(given), 1 / case.world
    return worst(
        judge_all(answers, "y", [o.y for o in expected]),
        judge_all(answers, "x", [o.dX for o in expected]),
        judge_all(answers, "lora_A", [summed("dA", [o.dA for o in expected], share=share)] * case.world),
        judge_all(answers, "lora_B", [summed("dB", [o.dB for o in expected], share=share)] * case.world),
    )


@clause(
    "DIS-DDP",
    sentence="""Under DistributedDataParallel each rank has y and dX of its own rows, and every rank the same dA
    and dB: the mean over ranks of theirs.""",
    cases=RANKS,
    subjects=LAYERS,
    dtypes=DTYPES,
    weight=0.25,
)
def test_data_parallel(subject: Subject, case: RanksCase) -> float | None:
    return judge_step(subject, case, "ddp")


@clause(
    "DIS-FSDP",
    sentence="""The same under fully_shard, whose shards of W, A and B may differ in size or be empty; the
    gradients are those of the sharded parameters.""",
    cases=RANKS,
    subjects=LAYERS,
    dtypes=DTYPES,
    weight=0.25,
)
def test_fully_sharded(subject: Subject, case: RanksCase) -> float | None:
    return judge_step(subject, case, "fsdp")


def _fewer_rows(case: RanksCase) -> RanksCase:
    """The case with fewer rows than ranks."""
    world = max(case.world, 2)
    return dataclasses.replace(RANKS.tame(case), world=world, m=min(case.m, world - 1))


@clause(
    "DIS-EMPTY",
    sentence="A rank whose batch is empty takes part in backward: the others' gradients are averaged over all ranks.",
    cases=Space(RanksCase, tame=_fewer_rows, **(EXACT.values | {"world": (2, 4), "m": (1, 2, 3)})),
    subjects=LAYERS,
    dtypes=("float32",),
    weight=0.25,
)
def test_empty_batch(subject: Subject, case: RanksCase) -> float | None:
    return judge_step(subject, case, case.strategy)


@clause(
    "DIS-ACCUM",
    sentence="""Gradients of a first batch that are not synchronised (no_sync, set_requires_gradient_sync) are
    added to those of the second on each rank, and the mean over ranks is of the sums.""",
    cases=EXACT.narrowed(m=(8, 9, 11)),
    subjects=LAYERS,
    dtypes=("float32",),
    weight=0.25,
)
def test_accumulation(subject: Subject, case: RanksCase) -> float | None:
    given = parts(subject.operands(case), "m", 2 * case.world)

    def work(rank: int) -> dict[str, torch.Tensor]:
        first, second = given[2 * rank : 2 * rank + 2]
        instance = wrapped(subject, first, case.strategy)
        with without_sync(instance, case.strategy):
            instance.backward(instance.forward())
        instance.operands, instance.tensors["x"] = second, second.placed["x"].tensor
        instance.backward(instance.forward())
        return gradients(instance)

    answers, expected, share = on_ranks(case.world, work), oracles(given), 1 / case.world
    dA = summed("dA", [o.dA for o in expected], share=share, by="batch")
    dB = summed("dB", [o.dB for o in expected], share=share, by="batch")
    return worst(
        judge_all(answers, "lora_A", [dA] * case.world),
        judge_all(answers, "lora_B", [dB] * case.world),
    )


@clause(
    "DIS-STEP",
    sentence="""Two steps of SGD on several ranks leave the adapter that one process trains on all rows at
    1/ranks of the rate.""",
    cases=EXACT,
    subjects=LAYERS,
    dtypes=("float64",),
    weight=0.25,
)
def test_two_steps(subject: Subject, case: RanksCase) -> float | None:
    operands = subject.operands(case)
    given = parts(operands, "m", case.world)

    def work(rank: int) -> dict[str, torch.Tensor]:
        instance = wrapped(subject, given[rank], case.strategy)
        parameters = [instance.tensors[name] for name in ADAPTER]
        optimizer = torch.optim.SGD(parameters, lr=RATE)
        for _ in range(2):
            optimizer.zero_grad()
            instance.backward(instance.forward())
            optimizer.step()
        return {name: whole(instance.tensors[name], name) for name in ADAPTER}

    answers, expected = on_ranks(case.world, work), _trained(operands, 2, RATE / case.world)
    return worst(*(judge_all(answers, name, [expected[name]] * case.world) for name in ADAPTER))


def _trained(operands: Operands, steps: int, rate: float) -> dict[str, Expected]:
    """The adapter after gradient descent on ⟨g, y⟩; exact, as all numbers are dyadic and few."""
    x, g, scale = operands.rows("x"), operands.rows("g"), operands.scale
    A, B = operands.values["lora_A"], operands.values["lora_B"]
    moves: dict[str, dict[str, Array]] = {name: {} for name in ADAPTER}
    for index in range(steps):
        dA, dB = scale * (g @ B).T @ x, scale * g.T @ (x @ A.T)
        moves["lora_A"][f"step {index}"], moves["lora_B"][f"step {index}"] = -rate * dA, -rate * dB
        A, B = A - rate * dA, B - rate * dB
    return {
        name: Expected(f"{name} after {steps} steps", value, None, operands.dtype, moves[name])
        for name, value in (("lora_A", A), ("lora_B", B))
    }
