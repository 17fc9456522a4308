"""A clause: one normative sentence with a stable id, and the check that decides it."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from conformance.cases.reproducer_marks import left_out
from conformance.numerics.dtypes import FLOAT_DTYPES
from conformance.specification.groups import FOLDER, PACKAGE, folders_of, group_of, groups

if TYPE_CHECKING:
    from conformance.cases.case import Space

MUST, SHOULD = "MUST", "SHOULD"
# A check returns the worst error ÷ budget it saw (None where it compares no numbers) and raises Violation.
Check = Callable[[Any, Any], "float | None"]


@dataclass(frozen=True)
class Clause:
    """One normative sentence and how it is checked.

    Attributes:
        id: stable, never reused with another meaning (`LIN-BWD-DB`).
        sentence: what an implementation must do.
        check: called with the subject and a case; raises `Violation`.
        cases: where its cases are drawn from.
        level: MUST gates the verdict, SHOULD is reported.
        dtypes: judged once for each of them; empty where dtype has no meaning.
        needs: public names without which this clause is not claimed, beyond the group's required ones.
        subjects: names of the group's subjects it applies to; empty for all.
        position: the dropout position without which it is not claimed; empty for either.
        library: packages that its cases need, as in ``transformers>=5 peft``; not claimed where one is not installed.
        weight: cases relative to an ordinary clause (0.1 for one that compiles, say); at least one runs.
        why: the reason for the clause, where its sentence does not say it.
    """

    id: str
    sentence: str
    check: Check
    cases: Space[Any]
    level: str = MUST
    dtypes: tuple[str, ...] = FLOAT_DTYPES
    needs: tuple[str, ...] = ()
    subjects: tuple[str, ...] = ()
    position: str = ""
    library: str = ""
    weight: float = 1.0
    why: str = ""
    source: str = field(default="", compare=False)

    @cached_property
    def group(self) -> str:
        """The group that its id's prefix names (`linear` for `LIN-FWD`)."""
        return group_of(self.id)


REGISTRY: dict[str, Clause] = {}


@left_out
def clause(
    *ids: str, sentence: str, cases: Space[Any], why: str = "", **options: Any
) -> Callable[[Check], Callable[[Any], None]]:
    """Register a check as one clause or several, and turn it into a pytest test that takes one `trial`.

    Several ids are the same sentence about several groups. The plugin parametrises the test: one trial for each
    clause, subject and dtype of the chosen target.

    Raises:
        ValueError: if an id is taken, no group has its prefix, or an option is unknown.
    """

    def register(check: Check) -> Callable[[Any], None]:
        declared = tuple(
            Clause(name, _one_line(sentence), check, cases, why=_one_line(why), source=check.__module__, **options)
            for name in ids
        )
        for one in declared:
            known = REGISTRY.get(one.id, one)
            if known.source != one.source:
                raise ValueError(f"clause {one.id} is declared in {known.source} and again in {one.source}")
            group_of(one.id)
            REGISTRY[one.id] = one

        def test(trial: Any) -> None:
            trial.run()

        test.__name__ = check.__name__
        test.__doc__ = declared[0].sentence
        test.clauses = declared  # type: ignore[attr-defined]
        return test

    return register


def _one_line(text: str) -> str:
    return " ".join(text.split())


def load_all(chosen: Iterable[str] | None = None) -> dict[str, Clause]:
    """Import the clauses of these groups, or of all, and return those registered: by group, folder and file."""
    every = list(groups())
    for folder in dict.fromkeys(folder for group in chosen or every for folder in folders_of(group)):
        for topic in pkgutil.iter_modules([str(FOLDER / folder)]):
            importlib.import_module(f"{PACKAGE}.{folder}.{topic.name}")

    def place(clause: Clause) -> tuple[int, int, str]:
        folder, topic = clause.source.split(".")[-2:]
        return every.index(clause.group), folders_of(clause.group).index(folder), topic

    return {clause.id: clause for clause in sorted(REGISTRY.values(), key=place)}
