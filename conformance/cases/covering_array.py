"""Covering arrays: few cases in which each pair (or triple) of values of different axes meets."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from conformance.cases.size_relations import SIZES

C = TypeVar("C")  # a case: a dataclass with the axes among its fields
CANDIDATES = 6  # draws of which the one with most new combinations is taken
LATIN = 0.75  # share of draws from the values that were not taken lately
ATTEMPTS = 64  # draws that keep to a combination, after which it counts as one that the space excludes
Combination = tuple[int, ...]


class Coverage:
    """The combinations of values of different axes that cases meet.

    A relation between sizes is not combined with a size, which the relation changes.

    Attributes:
        axes: the values of each axis; an axis with one value is left out.
        open: the combinations that no case has met yet, as numbers of (axis, value) items.
        excluded: the combinations that the space's limits exclude.
    """

    def __init__(self, axes: Mapping[str, Sequence[Any]], strength: int = 2) -> None:
        distinct = {name: tuple(dict.fromkeys(values)) for name, values in axes.items()}
        self.axes = {name: values for name, values in distinct.items() if len(values) > 1}
        self.items = [(name, value) for name, values in self.axes.items() for value in values]
        self._number = {name: {v: self.items.index((name, v)) for v in values} for name, values in self.axes.items()}
        self._strength = min(strength, len(self.axes))
        self.open: dict[Combination, None] = {
            combination: None
            for names in itertools.combinations(self.axes, self._strength)
            if "sizes" not in names or not set(names) & set(SIZES)
            for combination in itertools.product(*(self._number[name].values() for name in names))
        }
        self.excluded: set[Combination] = set()

    def met(self, case: object) -> list[Combination]:
        """The open combinations that a case meets."""
        values, is_open = vars(case), self.open
        numbers = [known.get(values[name], -1) for name, known in self._number.items()]
        return [found for found in itertools.combinations(numbers, self._strength) if found in is_open]

    def add(self, cases: Iterable[object]) -> None:
        """Count the combinations of these cases as met."""
        for case in cases:
            for combination in self.met(case):
                del self.open[combination]

    def exclude(self, combination: Combination) -> None:
        """Count a combination as one that the space's limits exclude."""
        del self.open[combination]
        self.excluded.add(combination)


def completion(made: Callable[..., C], coverages: Sequence[Coverage], key: str) -> Iterator[C]:
    """Cases that meet, one after the other, every open combination that the space can give; the richest first.

    Args:
        made: builds a case from values of axes, within the limits of its space.
        coverages: completed in this order; each gets the cases added.
        key: the seed of the draws.
    """
    decks = _Decks({name: values for coverage in coverages for name, values in coverage.axes.items()}, key)
    for coverage in coverages:
        yield from _completion(made, coverage, coverages, decks)


def _completion(
    made: Callable[..., C],
    coverage: Coverage,
    coverages: Sequence[Coverage],
    decks: _Decks,
) -> Iterator[C]:
    least = max(map(len, decks.axes.values()), default=0)
    directed = False  # the first cases meet much wherever they lie
    while coverage.open:
        wanted = next(iter(coverage.open)) if directed else ()
        fixed = dict(coverage.items[number] for number in wanted)
        best, most, tried = None, 0, 0
        for _ in range(ATTEMPTS):
            if tried == CANDIDATES:
                break
            case = made(**decks.draw() | fixed)
            if directed and any(getattr(case, name) != value for name, value in fixed.items()):
                continue
            tried += 1
            found = len(coverage.met(case))
            if found > most:
                best, most = case, found
        directed = directed or most < least
        if best is not None:
            for each in coverages:
                each.add([best])
            decks.take(best)
            yield best
        elif wanted:
            coverage.exclude(wanted)


class _Decks:
    """Draws of values, mostly those that the cases so far have least: so a few cases already meet each value."""

    def __init__(self, axes: Mapping[str, tuple[Any, ...]], key: str) -> None:
        self.axes = axes
        self._chance = random.Random(key)
        self._left = {name: list(values) for name, values in axes.items()}
        self._each = [(name, values, self._left[name]) for name, values in axes.items()]

    def draw(self) -> dict[str, Any]:
        """A value of each axis."""
        random_number = self._chance.random
        drawn = {}
        for name, values, left in self._each:
            among = left if random_number() < LATIN else values
            drawn[name] = among[int(random_number() * len(among))]
        return drawn

    def take(self, case: object) -> None:
        """Lay aside the values of a case, until each value of the axis has been taken."""
        for name, left in self._left.items():
            value = getattr(case, name)
            if value in left:
                left.remove(value)
                if not left:
                    left.extend(self.axes[name])
