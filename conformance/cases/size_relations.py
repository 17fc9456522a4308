"""Relations between the sizes of a case: square weights, ranks as large as a side, sizes of one, primes.

A transposed or exchanged operand shows only where two sizes differ, and a condition on equal sizes only where they
agree. So the relation is an axis of its own, which is crossed with every other axis.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

C = TypeVar("C")  # a case: a frozen dataclass with sizes among its fields
FREE = "free"
SIZES = ("m", "k", "n", "r")
Change = tuple[str, str, Callable[[int], int]]  # the size that changes, the size it follows, and how


def _same(size: int) -> int:
    return size


def _next_prime(number: int) -> int:
    while number < 2 or any(number % divisor == 0 for divisor in range(2, int(number**0.5) + 1)):
        number += 1
    return number


RELATIONS: dict[str, tuple[Change, ...]] = {
    "k=n": (("n", "k", _same),),
    "r=k": (("k", "r", _same),),
    "r=n": (("n", "r", _same),),
    "m=k": (("m", "k", _same),),
    "k=2n": (("k", "n", lambda n: 2 * n),),
    "one": tuple((size, size, lambda _: 1) for size in SIZES),
    "prime": tuple((size, size, _next_prime) for size in SIZES),
}


def offered(values: Mapping[str, Sequence[Any]]) -> tuple[str, ...]:
    """The relations that some sizes of a space satisfy, `free` first; a space of single sizes has `free` only."""
    return (FREE, *(name for name, changes in RELATIONS.items() if _possible(changes, values)))


def _possible(changes: tuple[Change, ...], values: Mapping[str, Sequence[Any]]) -> bool:
    if len(changes) == 1 and not {*changes[0][:2]} <= set(values):
        return False
    known = [change for change in changes if change[0] in values]
    inside = (
        any(min(values[size]) <= follow(source) <= max(values[size]) for source in values[other])
        for size, other, follow in known
    )
    return any(len(set(values[size])) > 1 for size, _, _ in known) and all(inside)


def related(case: C, values: Mapping[str, Sequence[Any]]) -> C:
    """The case with the sizes that its relation demands; with free sizes if these leave the bounds of the space."""
    relation = getattr(case, "sizes", FREE)
    if relation == FREE:
        return case
    changed = {}
    for size, other, follow in RELATIONS[relation]:
        if allowed := values.get(size):
            wanted = follow(getattr(case, other))
            if not min(allowed) <= wanted <= max(allowed):
                return _freed(case)
            if wanted != getattr(case, size):
                changed[size] = wanted
    return _replaced(case, **changed) if changed else case


def still_related(case: C, values: Mapping[str, Sequence[Any]]) -> C:
    """The case; with free sizes if a limit on the work has broken its relation."""
    return case if related(case, values) is case else _freed(case)


def _freed(case: C) -> C:
    return _replaced(case, sizes=FREE)


def _replaced(case: C, **changed: Any) -> C:
    """A copy of the case with other values; `dataclasses.replace` takes ten times as long, and this is called for
    each of the many cases that a row of a covering array is chosen from."""
    replaced = object.__new__(type(case))
    vars(replaced).update(vars(case), **changed)
    return replaced
