"""Data parallelism: each rank has its own rows, under DistributedDataParallel or `fully_shard`."""

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
RATE = 0.25  # the learning rate; a power of two keeps exact numbers exact


def judge_step(subject: Subject, case: RanksCase, strategy: str) -> float | None:
    """Judge forward and backward: y and dX of each rank's own rows, and dA and dB as the mean over ranks."""
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
    sentence="""Under DistributedDataParallel each rank computes y and dX of its own rows, and all ranks get the same
    dA and dB: the mean of the ranks' gradients.""",
    cases=RANKS,
    subjects=LAYERS,
    dtypes=DTYPES,
    weight=0.25,
)
def test_data_parallel(subject: Subject, case: RanksCase) -> float | None:
    return judge_step(subject, case, "ddp")


@clause(
    "DIS-FSDP",
    sentence="""Under fully_shard each rank computes y and dX of its own rows, and dA and dB, sharded as A and B are,
    are the mean of the ranks' gradients. The shards of W, A and B may differ in size or be empty.""",
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
    sentence="""A rank with an empty batch takes part in backward: dA and dB are averaged over all ranks, this one
    included.""",
    why="A rank that leaves out the communication of backward blocks all others.",
    cases=Space(RanksCase, tame=_fewer_rows, **(EXACT.values | {"world": (2, 4), "m": (1, 2, 3)})),
    subjects=LAYERS,
    dtypes=("float32",),
    weight=0.25,
)
def test_empty_batch(subject: Subject, case: RanksCase) -> float | None:
    return judge_step(subject, case, case.strategy)


@clause(
    "DIS-ACCUM",
    sentence="""A first batch whose gradients are not synchronised (no_sync, set_requires_gradient_sync) adds to the
    second batch on each rank: dA and dB are the mean over ranks of these sums.""",
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
    sentence="""Two steps of SGD on several ranks give the same adapter as one process that trains on all rows with
    the learning rate divided by the number of ranks.""",
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
    """The adapter after gradient descent on ⟨g, y⟩; exact, because all numbers are small dyadic fractions."""
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
