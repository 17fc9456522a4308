"""The parts of a layer's operands for each rank, and the expected results of all ranks together."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from conformance.cases.case import Space
from conformance.cases.linear_case import LinearCase
from conformance.cases.operands import Operands
from conformance.judgement.judge import judge_together
from conformance.judgement.linear_oracle import Expected, LinearOracle
from conformance.numerics.formats import Array, dtype_named, format_of

DTYPES = ("float32", "bfloat16")
# For each axis, the dimension of each operand along which it lies.
AXES = {
    "m": {"x": 0, "g": 0},
    "n": {"weight": 0, "bias": 0, "lora_B": 0, "g": 1},
    "k": {"weight": 1, "lora_A": 1, "x": 1},
}


@dataclass(frozen=True)
class RanksCase(LinearCase):
    """One layer on several ranks.

    Fields:
        world: the number of ranks.   strategy: the way ranks share the work, where a clause has several.
    """

    world: int = 1
    strategy: str = "ddp"


def tamed(case: RanksCase) -> RanksCase:
    """The case on a power of two of ranks, for exact means; in 16 bits with normal values, as sums would round."""
    values = "normal" if dtype_named(case.dtype).itemsize == 2 else case.values
    return dataclasses.replace(case, world=power_of_two(case.world), values=values)


def power_of_two(world: int) -> int:
    """The largest power of two that is not above this number."""
    return 1 << (world.bit_length() - 1)


# World sizes come first: an error that one rank shows already has nothing to do with ranks.
RANKS = Space(
    RanksCase,
    tame=tamed,
    world=(1, 2, 4),
    m=(4, 5, 7, 9),
    k=(1, 5, 8),
    n=(1, 5, 8),
    r=(1, 2, 5),
    scale=(1.0, 2.0, 0.5),
    bias=(False, True),
    values=("integers", "normal"),
    sizes=("free", "k=n", "r=k", "m=k"),
)


def cut(length: int, world: int, *, like_shards: bool) -> list[slice]:
    """The slice of each rank: as shards (equal sizes, the last ones smaller or empty), or as even as possible."""
    if like_shards:
        size = -(-length // world)
        return [slice(min(rank * size, length), min((rank + 1) * size, length)) for rank in range(world)]
    ends = [length * rank // world for rank in range(world + 1)]
    return [slice(first, last) for first, last in itertools.pairwise(ends)]


def part(whole: Operands, axis: str, at: slice) -> Operands:
    """The operands restricted to a range of rows (`m`), outputs (`n`) or features (`k`)."""
    found = copy.copy(whole)
    vars(found).pop("placed", None)
    length = len(range(*at.indices(getattr(whole.case, axis))))
    sized: dict[str, Any] = {axis: length}
    found.case = dataclasses.replace(whole.case, **sized)
    found.values = dict(whole.values)
    for name, dimension in AXES[axis].items():
        if name in found.values:
            found.values[name] = whole.values[name][(slice(None),) * dimension + (at,)]
    if axis == "k":  # the bias belongs to the sum of the parts, once
        found.values.pop("bias", None)
    found.shape = (*found.case.leading, found.case.n)
    return found


def parts(whole: Operands, axis: str, world: int, *, like_shards: bool = False) -> list[Operands]:
    """The parts of all ranks."""
    length = getattr(whole.case, axis)
    return [part(whole, axis, at) for at in cut(length, world, like_shards=like_shards)]


def summed(
    name: str, found: Sequence[Expected], whole: Expected | None = None, *, share: float = 1.0, by: str = "rank"
) -> Expected:
    """The expected sum over ranks times `share`; its budget allows rounding on every rank and after each addition.

    Args:
        whole: the expected result of one rank, whose budget is used; without it the budgets of the parts are added.
        by: the word for a part in messages.
    """
    count, first = len(found), found[0]
    value = sum((e.value for e in found), np.zeros_like(first.value)) * share
    given = [whole] if whole is not None else found
    exact = all(e.budget is None for e in (*found, *given))
    allowed = sum((share * e.budget for e in given if e.budget is not None), np.zeros_like(value))
    terms: dict[str, Array] = {}
    if count > 1:
        form = format_of(first.dtype)
        allowed = allowed + (count + 1) * (form.unit * share * sum(np.abs(e.value) for e in found) + form.step)
        terms = {f"{by} {i}": e.value * share for i, e in enumerate(found) if e.value.any()}
    return Expected(
        name,
        value if whole is None else whole.value,
        None if exact else allowed,
        first.dtype,
        terms | (whole.terms if whole is not None else {}),
        certified=any(e.certified for e in given),
    )


def oracles(found: Sequence[Operands]) -> list[LinearOracle]:
    """The oracle of each rank's part."""
    return [LinearOracle(operands) for operands in found]


def named(expected: Expected, rank: int, world: int) -> Expected:
    """The expected value with this rank in its name."""
    where = f" on rank {rank} of {world}" if world > 1 else ""
    return dataclasses.replace(expected, name=f"{expected.name}{where}")


def judge_all(answers: Sequence[dict[str, torch.Tensor]], key: str, expected: Sequence[Expected]) -> float | None:
    """Judge one result of every rank; the case decides if that of one rank can show a wrong result."""
    pairs = enumerate(zip(answers, expected, strict=True))
    return judge_together((a[key], named(e, rank, len(answers))) for rank, (a, e) in pairs)
