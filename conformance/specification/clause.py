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
        id: a stable name (`LIN-BWD-DB`), never reused with another meaning.
        sentence: what an implementation must do.
        check: a function of the subject and a case, which raises `Violation`.
        cases: the space from which its cases are drawn.
        level: MUST decides the verdict, SHOULD is reported only.
        dtypes: the clause is judged once in each; empty if dtype has no meaning.
        needs: public names, beyond the group's required ones, without which a target does not claim the clause.
        subjects: names of the group's subjects that the clause applies to; empty for all.
        position: the dropout position that the target must support; empty for either.
        library: packages that its cases need, as in ``transformers>=5 peft``; the clause is skipped without them.
        weight: number of cases relative to an ordinary clause (say 0.1 for a clause that compiles); at least one runs.
        feature: the features without which the clause is not claimed, as in ``dora_dropout dropout``; it counts for the
            first. Empty for the core.
        convention: the convention of a feature without which the clause is not claimed, as in ``eval_mode=separate``.
        why: the reason for the clause, if its sentence does not say it.
        aliases: former ids, of clauses whose demands this one has taken over.
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
    feature: str = ""
    convention: str = ""
    aliases: tuple[str, ...] = ()
    source: str = field(default="", compare=False)

    @cached_property
    def group(self) -> str:
        """The group of the clause, from the prefix of its id (`linear` for `LIN-FWD`)."""
        return group_of(self.id)

    @property
    def features(self) -> tuple[str, ...]:
        """The features without which the clause is not claimed: its own, then its group's."""
        return (*self.feature.split(), *groups()[self.group].feature.split())


REGISTRY: dict[str, Clause] = {}
FORMER: dict[str, str] = {}  # by former id, the clause that has taken it over


@left_out
def clause(
    *ids: str, sentence: str, cases: Space[Any], why: str = "", **options: Any
) -> Callable[[Check], Callable[[Any], None]]:
    """Register a check as one clause or several, and turn it into a pytest test that takes one `trial`.

    Several ids state the same sentence for several groups. The plugin parametrises the test: it has one trial for each
    clause, subject and dtype of the chosen target.

    Raises:
        ValueError: if an id is declared twice, also as a former id, or no group has its prefix.
        TypeError: if an option is unknown.
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
            for name in (one.id, *one.aliases):
                holder = name if name in REGISTRY else FORMER.get(name, one.id)
                if holder != one.id:
                    raise ValueError(f"clause {one.id} declares the id {name}, which {holder} has or had")
            REGISTRY[one.id] = one
            FORMER.update(dict.fromkeys(one.aliases, one.id))

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
    """Import the clauses of the chosen groups, or of all; return every registered clause by id, in the page's order."""
    every = list(groups())
    for folder in dict.fromkeys(folder for group in chosen or every for folder in folders_of(group)):
        for topic in pkgutil.iter_modules([str(FOLDER / folder)]):
            importlib.import_module(f"{PACKAGE}.{folder}.{topic.name}")

    def place(clause: Clause) -> tuple[int, int, str]:
        folder, topic = clause.source.split(".")[-2:]
        return every.index(clause.group), folders_of(clause.group).index(folder), topic

    return {clause.id: clause for clause in sorted(REGISTRY.values(), key=place)}
