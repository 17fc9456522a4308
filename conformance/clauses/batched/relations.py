"""Relations between the target's own results for batches; both sides may err by their budgets."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch

from conformance.clauses.batched.batch import Batch, output
from conformance.clauses.batched.case import NORMAL, USED, BatchedCase
from conformance.clauses.batched.oracle import Oracle
from conformance.judgement.judge import compare, judge, worst
from conformance.judgement.linear_oracle import Expected
from conformance.judgement.outcomes import Inconclusive, require
from conformance.numerics.formats import Array, numbers
from conformance.specification.clause import clause
from conformance.target.subject import Subject

# Without ranks, so that a relation may move adapters and rows freely; the formula's clauses judge ranks.
RELATED = NORMAL.narrowed(ranks=("none",), routing=USED, lead=("2d",))


def changed(subject: Subject, case: BatchedCase, change: Callable[[Batch], None]) -> Batch:
    """The batch of a case after a change of its values or its routing."""
    batch = Batch(subject, case)
    change(batch)
    return batch


def agrees(got: Array, want: Array, allowed: Array | None, what: str) -> float:
    """Compare two results of the target, which may each err by the budget; None asks for equality."""
    return compare(got, Expected(what, want, None if allowed is None else 2 * allowed, torch.float64))


def budget_of(batch: Batch) -> Array:
    """The budget of y."""
    found = Oracle(batch).y.budget
    assert found is not None
    return found


@clause(
    "BAT-REL-ONE",
    sentence="""A batch in which every row has adapter e gives what a batch of that adapter alone gives: its place among
    the others does not matter.""",
    cases=RELATED.narrowed(routing=("one",)),
    weight=0.5,
)
def test_one_adapter(subject: Subject, case: BatchedCase) -> float | None:
    whole = Batch(subject, case)
    chosen = int(whole.index[0])
    alone = Batch(subject, case)
    for name in ("lora_A", "lora_B"):
        alone.values[name] = alone.values[name][chosen : chosen + 1]
    alone.index, alone.scales, alone.ranks = np.zeros_like(alone.index), [alone.scales[chosen]], alone.ranks[:1]
    return agrees(
        numbers(output(subject, whole)), numbers(output(subject, alone)), budget_of(whole), "y against one adapter's y"
    )


@clause(
    "BAT-REL-PERMUTE",
    sentence="Permuting the rows of x together with adapter_index permutes the rows of y.",
    cases=RELATED,
    weight=0.5,
)
def test_permuted_rows(subject: Subject, case: BatchedCase) -> float | None:
    order = np.random.default_rng(case.seed).permutation(case.m)

    def permute(batch: Batch) -> None:
        batch.values["x"], batch.index = batch.values["x"][order], batch.index[order]

    straight = Batch(subject, case)
    got = numbers(output(subject, changed(subject, case, permute)))
    return agrees(got, numbers(output(subject, straight))[order], budget_of(straight)[order], "y of permuted rows")


@clause(
    "BAT-REL-SPLIT",
    sentence="The results of a batch split in two, at any row, are the rows of the whole batch's.",
    cases=RELATED,
    weight=0.5,
)
def test_split_batch(subject: Subject, case: BatchedCase) -> float | None:
    whole = Batch(subject, case)
    middle, y, ratios = case.seed % case.m, numbers(output(subject, whole)), []
    for rows in (slice(0, middle), slice(middle, case.m)):
        part = Batch(subject, case)
        part.values["x"], part.index = part.values["x"][rows], part.index[rows]
        part.case = dataclasses.replace(case, m=len(part.index))
        got = numbers(output(subject, part))
        require(got.shape == y[rows].shape, f"y has shape {list(got.shape)}: expected {list(y[rows].shape)}")
        ratios.append(agrees(got, y[rows], budget_of(whole)[rows], "y of a part of the batch"))
    return worst(*ratios)


@clause(
    "BAT-REL-RENAME",
    sentence="Adapters that change places, with the rows' indices, give the same y.",
    cases=RELATED,
    weight=0.5,
)
def test_renamed_adapters(subject: Subject, case: BatchedCase) -> float | None:
    order = np.random.default_rng(case.seed + 1).permutation(case.adapters)
    if (order == np.arange(case.adapters)).all():
        order = order[::-1]
    places = np.append(np.argsort(order), -1)  # the new place of each adapter; the last entry serves index -1

    def rename(batch: Batch) -> None:
        for name in ("lora_A", "lora_B"):
            batch.values[name] = batch.values[name][order]
        batch.scales, batch.index = [batch.scales[place] for place in order], places[batch.index]

    straight = Batch(subject, case)
    got = numbers(output(subject, changed(subject, case, rename)))
    return agrees(got, numbers(output(subject, straight)), budget_of(straight), "y with renamed adapters")


@clause(
    "BAT-REL-UNUSED",
    sentence="Adapters that no row uses change nothing, however many there are, before or after those in use.",
    cases=RELATED,
    weight=0.5,
)
def test_unused_adapters(subject: Subject, case: BatchedCase) -> float | None:
    before, after = 1 + case.seed % 3, case.seed % 2
    straight = Batch(subject, case)

    def surround(batch: Batch) -> None:
        for name in ("lora_A", "lora_B"):
            one = 3 * batch.values[name][:1] + 1
            batch.values[name] = np.concatenate([*[one] * before, batch.values[name], *[one] * after])
        batch.scales = [7.0] * before + batch.scales + [7.0] * after
        batch.index = np.where(batch.index < 0, -1, batch.index + before)

    got = numbers(output(subject, changed(subject, case, surround)))
    return agrees(got, numbers(output(subject, straight)), budget_of(straight), "y with further adapters")


@clause(
    "BAT-REL-NEIGHBOURS",
    sentence="A row has the same result whatever values and adapters the other rows have.",
    cases=RELATED,
)
def test_neighbours(subject: Subject, case: BatchedCase) -> float | None:
    straight, other, row = _with_other_neighbours(subject, case)
    got, want = (numbers(output(subject, batch))[row] for batch in (other, straight))
    return worst(
        agrees(got, want, budget_of(straight)[row], f"y[{row}] with other neighbours"),
        judge(output(subject, other), Oracle(other).y),
    )


@clause(
    "BAT-REL-NEIGHBOURS-EXACT",
    sentence="A row has the same result bit for bit whatever values and adapters the other rows have.",
    why="Else a request's tokens depend on which other requests are served at the same time.",
    cases=RELATED,
    level="SHOULD",
    weight=0.5,
)
def test_neighbours_bit_for_bit(subject: Subject, case: BatchedCase) -> float | None:
    straight, other, row = _with_other_neighbours(subject, case)
    got, want = (numbers(output(subject, batch))[row] for batch in (other, straight))
    return agrees(got, want, None, f"y[{row}] with other neighbours")


def _with_other_neighbours(subject: Subject, case: BatchedCase) -> tuple[Batch, Batch, int]:
    """A batch, the batch with other values and adapters in all rows but one, and that row."""
    straight, other = Batch(subject, case), Batch(subject, case)
    row = case.seed % case.m
    rest = np.arange(case.m) != row
    if not rest.any():
        raise Inconclusive("the batch has one row")
    drawn = Batch(subject, dataclasses.replace(case, seed=case.seed + 1))
    other.values["x"] = np.where(rest[:, None], drawn.values["x"], straight.values["x"])
    shift = np.random.default_rng(case.seed).integers(0, case.adapters + 1, case.m)
    other.index = np.where(rest, (straight.index + 1 + shift) % (case.adapters + 1) - 1, straight.index)
    return straight, other, row
