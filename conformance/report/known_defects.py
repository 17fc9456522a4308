"""The table of known defects: for each known-bad twin the words of its defect and the clauses that it fails."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import log
from pathlib import Path

TABLE = Path(__file__).with_name("diagnoses.json")  # generated: see tests/support/diagnosis_table.py


@dataclass(frozen=True)
class Defect:
    """A known defect, from one twin, or from the twins of several groups that share it.

    Attributes:
        twins: names of its twins, `<clause>__<defect>`.   words: the end of "an implementation that …".
        says: what the message of each own clause contains.
        topic: the file of its twins, `<group>/<topic>`.
        groups: the groups whose clauses have judged it.   fails: the clauses that it fails.
    """

    twins: tuple[str, ...]
    words: str
    says: str
    topic: str
    groups: frozenset[str]
    fails: frozenset[str]

    @property
    def name(self) -> str:
        """The class that has the defect."""
        return self.twins[0].partition("__")[2]

    @property
    def own(self) -> tuple[str, ...]:
        """The clauses that its twins are for."""
        return tuple(twin.partition("__")[0] for twin in self.twins)


@dataclass(frozen=True)
class DefectTable:
    """Known defects, and what follows from comparing them."""

    defects: tuple[Defect, ...]

    @cached_property
    def failing(self) -> Counter[str]:
        """By clause how many twins fail it."""
        return Counter(clause for defect in self.defects for clause in defect.fails)

    @cached_property
    def shared(self) -> frozenset[str]:
        """The clauses that judge twins of other clauses; the others say nothing of a twin that is not their own."""
        return frozenset(clause for defect in self.defects for clause in defect.fails - {*defect.own})

    @cached_property
    def candidates(self) -> tuple[Defect, ...]:
        """Each defect alone, and those of several groups as one."""
        by_class: dict[tuple[str, str], list[Defect]] = {}
        for defect in self.defects:
            by_class.setdefault((defect.topic, defect.name), []).append(defect)
        return (*self.defects, *(_joined(same) for same in by_class.values() if len(same) > 1))

    def weight(self, clause: str) -> float:
        """How much a failure of a clause says: little where many defects fail it."""
        return log((len(self.defects) + 1) / (self.failing[clause] + 1)) + 0.5

    def follows(self, clause: str, leading: str) -> bool:
        """Whether most defects that fail the leading clause fail the other as well."""
        both = [clause in defect.fails for defect in self.defects if leading in defect.fails]
        return len(both) >= 3 and sum(both) * 2 > len(both)

    def without(self, *names: str) -> DefectTable:
        """The table without the twins of these classes."""
        return DefectTable(tuple(defect for defect in self.defects if defect.name not in names))


def _joined(same: Iterable[Defect]) -> Defect:
    first, *others = same
    return Defect(
        first.twins + tuple(twin for other in others for twin in other.twins),
        first.words,
        first.says,
        first.topic,
        first.groups.union(*(other.groups for other in others)),
        first.fails.union(*(other.fails for other in others)),
    )


@lru_cache(maxsize=1)
def table() -> DefectTable:
    """The table of this version of the suite."""
    return table_of(json.loads(TABLE.read_text(encoding="utf-8")))


def table_of(found: Mapping[str, Mapping[str, object]]) -> DefectTable:
    """The table of the JSON object in `diagnoses.json`."""
    return DefectTable(
        tuple(
            Defect(
                (name,),
                str(about["words"]),
                str(about["says"]),
                str(about["topic"]),
                frozenset(about["groups"]),  # type: ignore[call-overload]
                frozenset(about["fails"]),  # type: ignore[call-overload]
            )
            for name, about in found.items()
        )
    )
