"""Cases: small frozen records of numbers, names and a seed; how they are drawn, searched and shrunk."""

from __future__ import annotations

import dataclasses
import random
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from conformance.cases.covering_array import Coverage, completion
from conformance.cases.size_relations import SIZES, offered, related, still_related

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

C = TypeVar("C", bound="Case")


@dataclass(frozen=True)
class Case:
    """The parameters of one example; a case never holds tensor elements.

    A case prints its sizes and the fields that differ from their defaults (`m=17 k=32 dtype=bfloat16`); `parse`
    reads that text back.
    """

    seed: int = 0
    dtype: str = "float32"

    def __str__(self) -> str:
        shown = [f for f in dataclasses.fields(self) if _is_size(f) or getattr(self, f.name) != f.default]
        return " ".join(f"{f.name}={shlex.quote(str(getattr(self, f.name)))}" for f in shown) or "defaults"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a case from the text that `str` gives.

        Raises:
            ValueError: naming the word that is not `field=value`, the unknown field, or the value's expected type.
        """
        fields = {f.name: f for f in dataclasses.fields(cls)}
        values: dict[str, Any] = {}
        for word in [] if text.strip() in ("", "defaults") else shlex.split(text):
            name, equals, value = word.partition("=")
            if not equals:
                raise ValueError(f"{word!r} in a case string is not field=value")
            if name not in fields:
                raise ValueError(f"{cls.__name__} has no field {name!r}: it has {', '.join(fields)}")
            values[name] = _read(name, value, type(fields[name].default))
        return cls(**values)


def _is_size(field: dataclasses.Field[Any]) -> bool:
    return field.name != "seed" and type(field.default) is int


def _read(name: str, value: str, kind: type) -> Any:
    if kind is bool:
        if value not in ("True", "False"):
            raise ValueError(f"{name}={value!r} in a case string must be True or False")
        return value == "True"
    try:
        return kind(value)
    except ValueError:
        raise ValueError(f"{name}={value!r} in a case string must be of type {kind.__name__}") from None


# Clauses choose by the seed what has no field of its own, one of a few ways. So that the few cases of a short profile
# take different ways, the dtypes begin apart: 11 has no factor in common with a number of ways.
FIRST_SEED = {"float32": 0, "float64": 11, "bfloat16": 22, "float16": 33}


class Space(Generic[C]):
    """The values that each field of a case may take, simplest first, and how to draw from them.

    `draw` first gives the rows of a covering array, in which each pair of values of two fields meets (the dtypes are
    one more field). A Latin hypercube over a counter follows: each of a field's L values occurs once in every block of
    L cases. A case depends on the arguments of `draw` only.

    A case type with a field `sizes` gets an axis of relations between its sizes (see `size_relations`).

    Attributes:
        covers: whether a profile's number of cases is drawn even if fewer kill the known-bad twins.
        limit: a function that keeps a case within what the clause can judge, or in bounds of work.
    """

    covers = False

    def __init__(self, case_type: type[C], *, tame: Callable[[C], C] | None = None, **values: Sequence[Any]) -> None:
        unknown = set(values) - {f.name for f in dataclasses.fields(case_type)}
        if unknown:
            raise ValueError(f"{case_type.__name__} has no field {', '.join(sorted(unknown))}")
        self.case_type = case_type
        self.values = {name: tuple(options) for name, options in values.items()}
        if any(f.name == "sizes" for f in dataclasses.fields(case_type)):
            self.values.setdefault("sizes", offered(self.values))
        self.limit = tame or (lambda case: case)
        self._simplest = vars(case_type(**{name: options[0] for name, options in self.values.items()}))
        self._rows: dict[tuple[int, str, tuple[str, ...], int], Rows[C]] = {}

    def narrowed(self, **values: Sequence[Any]) -> Space[C]:
        """This space with other values for some fields."""
        return Space(self.case_type, tame=self.limit, **{**self.values, **values})

    def enough(self) -> int | None:
        """The number of cases that cover the space, where it `covers`; None if every further case adds something."""
        return None

    def tame(self, case: C) -> C:
        """The case with sizes that have its relation and are within the space's limits."""
        return still_related(self.limit(related(case, self.values)), self.values)

    def made(self, **chosen: Any) -> C:
        """The case with these values, and the simplest value of every other field."""
        case = object.__new__(self.case_type)  # half the time of the constructor of a frozen dataclass
        vars(case).update(self._simplest, **chosen)
        return self.tame(case)

    def rows(self, seed: int, clause: str, dtypes: tuple[str, ...] = (), strength: int = 2) -> Rows[C]:
        """The covering array of a clause: each pair of values of two fields meets; the dtypes are one more field.

        With strength 3 further rows follow, with which each triple meets of values of three fields that are not sizes.
        """
        key = (seed, clause, dtypes, max(strength, 2))
        if key not in self._rows:
            axes = self.axes(dtypes)
            coverages = [Coverage(axes)]
            if strength == 3:
                coverages.append(Coverage({name: axes[name] for name in axes if name not in SIZES}, 3))
            made = partial(self.made, **({"dtype": dtypes[0]} if dtypes else {}))
            self._rows[key] = Rows(completion(made, coverages, f"{seed}/{clause}"), coverages)
        return self._rows[key]

    def axes(self, dtypes: tuple[str, ...] = ()) -> dict[str, tuple[Any, ...]]:
        """The values of each field, and the dtypes as one more field."""
        return self.values | ({"dtype": dtypes} if dtypes else {})

    def draw(
        self, seed: int, clause: str, index: int, dtype: str = "", dtypes: tuple[str, ...] = (), strength: int = 2
    ) -> C:
        """Case number `index` of a clause; it is the same for every worker, shard and order of tests.

        Args:
            seed: of the profile.
            clause: the clause's id.
            index: the number of the case, from 0.
            dtype: the dtype of the case; empty for a clause without dtypes.
            dtypes: the dtypes of the clause, which share the rows of its covering array.
            strength: that of the covering array, 2 or 3; with 1 there is none, and drawing takes no time.
        """
        fixed: dict[str, Any] = {"seed": index + FIRST_SEED.get(dtype, 0), **({"dtype": dtype} if dtype else {})}
        row = None if strength == 1 else self.rows(seed, clause, dtypes, strength).get(index, dtype)
        if row is not None:
            return self.tame(dataclasses.replace(row, **fixed))
        drawn = {
            name: _permuted(len(options), f"{seed}/{clause}/{name}/{index // len(options)}")[index % len(options)]
            for name, options in self.values.items()
        }
        chosen = {name: self.values[name][position] for name, position in drawn.items()}
        return self.tame(self.case_type(**chosen | fixed))

    def coverage(self, cases: Sequence[C], subject: Any) -> tuple[str | None, str | None]:  # noqa: ARG002
        """What these cases have covered on a subject, in words and as bits; None where nothing is counted."""
        return None, None

    def strategy(self, **fixed: Any) -> SearchStrategy[C]:
        """This space as a Hypothesis strategy, which shrinks toward each field's first value.

        The strategy draws bits only. Hypothesis also draws integers from the constants of the modules imported so far,
        so cases made from integers would depend on earlier tests.
        """
        from hypothesis import strategies as st

        def below(limit: int) -> SearchStrategy[int]:
            bits = st.tuples(*[st.booleans()] * (limit - 1).bit_length())
            return bits.map(lambda drawn: sum(bit << place for place, bit in enumerate(reversed(drawn))) % limit)

        free = {name: options for name, options in self.values.items() if name not in fixed}
        fields = {name: below(len(options)).map(options.__getitem__) for name, options in free.items()}
        given = {name: st.just(value) for name, value in fixed.items()}
        return st.builds(self.case_type, **{"seed": below(2**16), **fields, **given}).map(self.tame)

    def simpler(self, case: C) -> Iterator[C]:
        """Cases one step simpler than this one: for each field, every earlier value, or smaller integers."""
        for name, options in self.values.items():
            value = getattr(case, name)
            earlier = options[: options.index(value)] if value in options else options
            if isinstance(value, int) and not isinstance(value, bool):
                floor = min(options)
                # smaller listed integers, the half, and the predecessor
                steps = {v for v in earlier if v < value} | {v for v in (value // 2, value - 1) if v >= floor}
                earlier = tuple(sorted(steps))
            for option in earlier:
                smaller = self.tame(dataclasses.replace(case, **{name: option}))
                if smaller != case:
                    yield smaller


class Rows(Generic[C]):
    """The rows of a clause's covering array, drawn as far as they are needed.

    For one dtype its own rows come first. Those of the other dtypes follow, with this dtype in place of theirs: a run
    that leaves out a dtype takes over its rows.

    Attributes:
        coverages: the combinations that the rows meet: pairs, and triples if these were asked for.
    """

    def __init__(self, rows: Iterator[C], coverages: list[Coverage]) -> None:
        self._coming, self.coverages = rows, coverages
        self._drawn: list[C] = []

    def get(self, index: int, dtype: str) -> C | None:
        """Row number `index` for a dtype; None if there are fewer rows."""
        own = [row for row in self._drawn if not dtype or row.dtype == dtype]
        while len(own) <= index:
            row = next(self._coming, None)
            if row is None:
                others = [row for row in self._drawn if dtype and row.dtype != dtype]
                return [*own, *others][index] if index < len(self._drawn) else None
            self._drawn.append(row)
            if not dtype or row.dtype == dtype:
                own.append(row)
        return own[index]

    def count(self, dtype: str, *, whole: bool = False) -> int:
        """The number of the dtype's own rows, or of all."""
        self._drawn.extend(self._coming)
        return len(self._drawn) if whole or not dtype else sum(row.dtype == dtype for row in self._drawn)


@lru_cache(maxsize=4096)
def _permuted(length: int, key: str) -> tuple[int, ...]:
    order = list(range(length))
    random.Random(key).shuffle(order)
    return tuple(order)


def shrink(space: Space[C], case: C, fails: Callable[[C], bool], attempts: int = 150) -> C:
    """The simplest failing case that a greedy search finds within `attempts` checks."""
    tried = {case}
    progress = True
    while progress:
        progress = False
        for candidate in space.simpler(case):
            if candidate in tried:
                continue
            if attempts == 0:
                return case
            attempts -= 1
            tried.add(candidate)
            if fails(candidate):
                case, progress = candidate, True
                break
    return case
