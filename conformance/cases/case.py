"""Cases: small frozen records of numbers, names and a seed; how they are drawn, searched and shrunk."""

from __future__ import annotations

import dataclasses
import random
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

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


class Space(Generic[C]):
    """The values that each field of a case may take, simplest first, and how to draw from them.

    `draw` is a Latin hypercube over a counter: each of a field's L values occurs once in every block of L cases, so
    few cases cover every value. A case depends on the arguments of `draw` only.
    """

    def __init__(self, case_type: type[C], *, tame: Callable[[C], C] | None = None, **values: Sequence[Any]) -> None:
        unknown = set(values) - {f.name for f in dataclasses.fields(case_type)}
        if unknown:
            raise ValueError(f"{case_type.__name__} has no field {', '.join(sorted(unknown))}")
        self.case_type = case_type
        self.values = {name: tuple(options) for name, options in values.items()}
        self.tame = tame or (lambda case: case)

    def narrowed(self, **values: Sequence[Any]) -> Space[C]:
        """This space with other values for some fields."""
        return Space(self.case_type, tame=self.tame, **{**self.values, **values})

    def draw(self, seed: int, clause: str, index: int, **fixed: Any) -> C:
        """Case number `index` of a clause; it is the same for every worker, shard and order of tests."""
        drawn = {
            name: _permuted(len(options), f"{seed}/{clause}/{name}/{index // len(options)}")[index % len(options)]
            for name, options in self.values.items()
        }
        chosen = {name: self.values[name][position] for name, position in drawn.items()}
        return self.tame(self.case_type(**{"seed": index, **chosen, **fixed}))

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
