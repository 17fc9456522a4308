"""The case of a life: small sizes and a list of operations; the lives that cover every pair of operations."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from conformance.cases.case import Case, Space
from conformance.clauses.life.covering_walk import Situation, Walk, possible
from conformance.clauses.life.situation import Operation
from conformance.errors import suggestion
from conformance.numerics.dtypes import ADAPTER_DTYPES, FLOAT_DTYPES

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

NAMES: list[str] = []  # of every operation
LENGTH = 24  # operations in a life
RUNS = {1: "operations", 2: "pairs of operations", 3: "triples of operations"}
NIGHTLY = 160  # the number of the first case that covers triples, which take minutes to arrange
CYCLED = NIGHTLY - 1  # the number of the case that merges a changed adapter a thousand times
INTERPRETED = 8  # operations in a life whose kernels are interpreted, each of which takes 20 ms
CYCLE, CYCLES = ("merge", "unmerge", "fill-A", "fill-B"), 1000


@dataclass(frozen=True)
class LifeCase(Case):
    """A layer with k features, n outputs and rank r, and what it lives through.

    `life=1000*merge+unmerge` lives through two operations a thousand times.

    Fields:
        scale: alpha ÷ r.
        adapter: dtype of lora_A and lora_B; `same` is the base's.
        dropout: 0, or 1: the adapter then has no effect in training.
        life: the operations, in their order, joined by `+`, perhaps after a number of times.
    """

    k: int = 1
    n: int = 1
    r: int = 1
    scale: float = 1.0
    bias: bool = False
    adapter: str = "same"
    dropout: float = 0.0
    life: str = ""

    @property
    def operations(self) -> tuple[str, ...]:
        """The names of the operations."""
        times, star, names = self.life.rpartition("*")
        return tuple(names.split("+")) * (int(times) if star else 1) if self.life else ()

    def cut_for(self, lane: str) -> Self:
        """The case with fewer operations for Triton's interpreter; otherwise the case itself."""
        names = self.operations
        if lane != "interpreter" or len(names) <= INTERPRETED:
            return self
        return dataclasses.replace(self, life="+".join(names[:INTERPRETED]))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a case from the text that `str` gives.

        A script with the check's own code does not parse its case, and then needs no list of all operations.

        Raises:
            ValueError: if the text is no case, or naming the unknown operation.
        """
        case = super().parse(text)
        times, star, _ = case.life.rpartition("*")
        if star and not times.isdecimal():
            raise ValueError(f"life has {times!r} in place of a number of times, as in 1000*merge+unmerge")
        for name in case.operations:
            if name not in NAMES:
                raise ValueError(f"life has the unknown operation {name!r}: {suggestion(name, NAMES)}")
        return case


class LifeSpace(Space[LifeCase]):
    """Lives of some operations. The first ones meet every pair of operations that may follow each other.

    Args:
        operations: by name.   start: the situation before the first one.
        lacking: a function of a subject that returns the names of the operations that it does not have.
        first: operations with which every life begins.
        strength: the length of the runs of operations that the first lives cover: 2 for pairs.
        length: the most operations in a life.
        case_type: the record of a case.
    """

    covers = True

    def __init__(
        self,
        operations: Mapping[str, Operation],
        start: Situation,
        lacking: Callable[[Any], set[str]],
        first: tuple[str, ...] = (),
        strength: int = 2,
        length: int = LENGTH,
        case_type: type[LifeCase] = LifeCase,
        **values: Any,
    ) -> None:
        super().__init__(case_type, **values)
        self.operations, self.start, self.first, self.lacking = dict(operations), start, first, lacking
        self.strength, self.length = strength, length
        self._walks: dict[int, list[tuple[str, ...]]] = {}

    def narrowed(self, **values: Any) -> LifeSpace:
        """This space with other values for some fields."""
        return LifeSpace(
            self.operations,
            self.start,
            self.lacking,
            self.first,
            self.strength,
            self.length,
            self.case_type,
            **{**self.values, **values},
        )

    def walk(self, strength: int) -> list[tuple[str, ...]]:
        """Lives in which all pairs of operations meet, or with strength 3 all triples."""
        if strength not in self._walks:
            self._walks[strength] = Walk(self.operations, self._begun(), strength, self.length).lives()
        return self._walks[strength]

    def enough(self) -> int:
        """The number of the lives in which all pairs of operations meet."""
        return len(self.walk(self.strength))

    def _begun(self) -> Any:
        now: Any = self.start
        for name in self.first:
            now = self.operations[name].after(now)
        return now

    def draw(
        self,
        seed: int,
        clause: str,
        index: int,
        dtype: str = "float32",
        dtypes: tuple[str, ...] = (),  # noqa: ARG002
        strength: int = 2,  # noqa: ARG002  (the lives of later cases cover the triples)
    ) -> LifeCase:
        """Case number `index`: lives that cover the pairs, then the triples, each dtype beginning elsewhere.

        Random lives follow, and another seed gives random lives only.
        """
        chance = random.Random(f"{seed}/{clause}/{dtype}/{index}")
        chosen = {name: chance.choice(options) for name, options in self.values.items()}
        if index == CYCLED and {*CYCLE} <= {*self.operations} and not self.first:
            return self._made((f"{CYCLES}*{'+'.join(CYCLE)}",), seed=index, dtype=dtype, **chosen)
        return self._made(self._life(chance, seed, index, dtype), seed=index, dtype=dtype, **chosen)

    def _life(self, chance: random.Random, seed: int, index: int, dtype: str) -> tuple[str, ...]:
        strength, first = (self.strength, 0) if index < NIGHTLY else (self.strength + 1, NIGHTLY)
        if seed == 0:
            lives = self.walk(strength)
            if index - first < len(lives):
                return lives[(index - first + FLOAT_DTYPES.index(dtype) * len(lives) // len(FLOAT_DTYPES)) % len(lives)]
        return self.repaired([chance.choice(list(self.operations)) for _ in range(2 * self.length)])[: self.length]

    def _made(self, life: Iterable[str], **fields: Any) -> LifeCase:
        case = self.case_type(life="+".join((*self.first, *life)), **fields)
        if case.adapter != "other":
            return case
        # autocast leaves float64 alone, but not a float32 adapter beside it
        adapter = "same" if case.dtype == "float64" else ADAPTER_DTYPES[case.dtype]
        return dataclasses.replace(case, adapter=adapter)

    def repaired(self, names: Iterable[str]) -> tuple[str, ...]:
        """The life without the operations that may not come where they stand."""
        now, found = self._begun(), []
        for name in names:
            if self.operations[name].fits(now):
                now = self.operations[name].after(now)
                found.append(name)
        return tuple(found)

    def strategy(self, **fixed: Any) -> SearchStrategy[LifeCase]:
        """Random lives as a Hypothesis strategy, which shrinks by leaving operations out."""
        from hypothesis import strategies as st

        dtype = fixed["dtype"]
        fields = {name: st.sampled_from(options) for name, options in self.values.items() if name not in fixed}
        words = st.lists(st.sampled_from(list(self.operations)), max_size=self.length)
        lives = words.map(self.repaired)
        seeds = st.lists(st.booleans(), min_size=16, max_size=16).map(
            lambda bits: sum(b << i for i, b in enumerate(bits))
        )
        return st.builds(
            lambda life, seed, **chosen: self._made(life, seed=seed, dtype=dtype, **chosen), lives, seeds, **fields
        )

    def simpler(self, case: LifeCase) -> Iterator[LifeCase]:
        """The case without some of its operations, the longest runs first; then with simpler fields."""
        times, star, once = case.life.rpartition("*")
        if star:
            fewer = {int(times) // 2, int(times) - 1} - {0}
            yield from (dataclasses.replace(case, life=f"{n}*{once}" if n > 1 else once) for n in sorted(fewer))
            return
        names = case.operations[len(self.first) :]
        size = len(names)
        while size:
            for begin in range(0, len(names), size):
                rest = self.repaired(names[:begin] + names[begin + size :])
                if len(rest) < len(names):
                    yield dataclasses.replace(case, life="+".join((*self.first, *rest)))
            size //= 2
        if case.adapter != "same":
            yield dataclasses.replace(case, adapter="same")
        yield from (smaller for smaller in super().simpler(case) if smaller.adapter != "other")

    def coverage(self, cases: Sequence[LifeCase], subject: Any) -> tuple[str, str]:
        """How many runs of operations have been met, of those that are possible on this subject; and which, as bits."""
        lacking = self.lacking(subject)
        strength = self.strength + (len(cases) > NIGHTLY)  # the lives of later cases cover longer runs
        met: set[tuple[str, ...]] = set()
        for case in cases:
            names = [name for name in case.operations[len(self.first) :] if name not in lacking]
            met |= {tuple(names[n : n + strength]) for n in range(len(names) - strength + 1)}
        has = {name: operation for name, operation in self.operations.items() if name not in lacking}
        every = possible(has, self._begun(), strength)
        bits = sum(1 << place for place, run in enumerate(sorted(every)) if run in met)
        return f"{bits.bit_count()} of {len(every)} {RUNS[strength]} met", f"{bits:x}"
