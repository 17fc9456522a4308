"""The causes of a report's failures: failing clauses grouped, each group with the known defect that fails like it.

Known defects are the suite's known-bad twins. A defect is taken for the cause where the clauses that it fails fail here
and few of them pass, and the messages do not contradict it; where several defects are present, they are found one after
the other, the most telling first (a weighted set cover). What no defect explains is grouped by what was seen.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import fsum

from conformance.judgement.result import CRASHED, FAIL, PASS
from conformance.report.causes import Cause
from conformance.report.known_defects import Defect, DefectTable, table
from conformance.report.report import Report, ReportedClause
from conformance.report.resemblance import NUMBER, Resemblance, resemblance
from conformance.report.verdict import FAILING, by_interest
from conformance.target.layer_form import LayerForm

UNEXPLAINED = 0.25  # of a failing clause that a defect would not fail, in units of a clause that it explains
TELLING = 3  # failing clauses that are needed for a defect whose words are not in the message
MORE = 0.05  # of the score for each further clause that a defect explains, up to 20
FITTING = 0.5  # least share of a defect's clauses that fail where they are judged, for the nearest one


def causes(clauses: Sequence[ReportedClause], known: DefectTable | None = None) -> tuple[Cause, ...]:
    """The causes of what fails among a report's clauses, in the order in which they are shown."""
    return Diagnosis(clauses, known or table()).causes if any(c.status in FAILING for c in clauses) else ()


def led(report: Report) -> list[tuple[ReportedClause, Cause]]:
    """Each cause of a report with its leading clause; the causes are found now if the report was kept without them."""
    by_id = {clause.id: clause for clause in report.clauses}
    found = report.causes or causes(unexplained(report.clauses, report.forms))
    return [(by_id[cause.clause], cause) for cause in found]


def unexplained(clauses: Sequence[ReportedClause], forms: Sequence[LayerForm]) -> list[ReportedClause]:
    """The clauses that do not fail because of the form of a layer, which the report tells once for all of them."""
    return [clause for clause in clauses if not any(form.explains(clause.message) for form in forms)]


@dataclass(frozen=True)
class Group:
    """Failing clauses with one cause: the clause that says it best, what follows from it, and the defect if known."""

    leading: ReportedClause
    follows: tuple[ReportedClause, ...]
    defect: Defect | None = None


class Diagnosis:
    """The failing clauses of a run, compared with known defects.

    Args:
        clauses: all clauses of the report.   known: the defects to compare with.
    """

    def __init__(self, clauses: Sequence[ReportedClause], known: DefectTable) -> None:
        self.known, self.order = known, by_interest(clauses)
        failing = [clause for clause in self.order if clause.status in FAILING]
        # no known defect ends a process, so a crash neither speaks for one nor follows from one
        self.failing = {c.id: c for c in failing if c.status == FAIL and not c.stale}
        self.others = [clause for clause in failing if clause.id not in self.failing]
        self.passing = {clause.id for clause in clauses if clause.status == PASS}
        self.groups = {clause.group for clause in self.failing.values()}
        self.signs = {clause.id: signs(clause) for clause in failing}
        self._compared: dict[tuple[str, ...], Resemblance] = {}

    @property
    def causes(self) -> tuple[Cause, ...]:
        """Every failing clause in one cause."""
        found = [*self._explained(), *self._unexplained()]
        position = {clause.id: i for i, clause in enumerate(self.order)}
        found.sort(key=lambda group: position[group.leading.id])
        return tuple(self._cause(group) for group in found)

    def _explained(self) -> list[Group]:
        """The groups of the defects that fit, which leave `self.failing` without what they explain."""
        self.open, found = dict(self.failing), []
        while self.open and (best := self._best()) is not None:
            explained = [clause for name, clause in self.open.items() if name in best.fails]
            leading = next((clause for clause in explained if clause.id in best.own), explained[0])
            found.append(self._taken(leading, best))
        return found

    def _best(self) -> Defect | None:
        """The possible defect for which most speaks; of equal ones, the one of which most was judged."""
        judged = self.failing.keys() | self.passing
        possible = [defect for defect in self.known.candidates if self._possible(defect)]
        scored = [(self.score(one), -len(one.fails - judged), -len(one.twins), -i) for i, one in enumerate(possible)]
        return possible[-max(scored)[-1]] if scored else None

    def _possible(self, defect: Defect) -> bool:
        """Whether a defect could be the cause: an own clause fails, or none is judged, and enough others agree."""
        if not defect.groups & self.groups or not defect.fails & set(self.open):
            return False
        own = [name for name in defect.own if name in self.failing or name in self.passing]
        if own and not any(name in self.open for name in own):
            return False
        hits, words = defect.fails & set(self.failing), self._resemblance(defect)
        if len(hits) < TELLING and words is not Resemblance.SAID:
            # few clauses say too little, unless they are all that fails, and all that the defect would fail
            alone = len(hits) == len(self.open) and not defect.fails & self.passing
            return bool(own) and words is Resemblance.UNKNOWN and alone
        return self.fit(defect) >= words.needed

    def fit(self, defect: Defect) -> float:
        """How well the clauses that a defect fails are those that fail and are not explained yet; at most 1."""
        hits = self._weights(defect.fails & self.open.keys())
        missed = self._weights(defect.fails & self.passing)
        others = self._weights((self.open.keys() - defect.fails) & self.known.shared)
        return hits / (hits + missed + UNEXPLAINED * others) if hits else 0.0

    def score(self, defect: Defect) -> float:
        """How much speaks for a defect: its fit, its words, and how many clauses it explains."""
        words, explained = self._resemblance(defect), min(self._weights(defect.fails & self.open.keys()), 20.0)
        said = len(defect.says) * 1e-5 if words is Resemblance.SAID else 0.0  # of two, the one that says more
        return self.fit(defect) * words.factor * (1 + MORE * explained) + said

    def _weights(self, names: Iterable[str]) -> float:
        return fsum(self.known.weight(name) for name in names)

    def _resemblance(self, defect: Defect) -> Resemblance:
        if defect.twins not in self._compared:
            texts = [text for name in defect.own if name in self.failing for text in messages(self.failing[name])]
            self._compared[defect.twins] = resemblance(defect.says, texts)
        return self._compared[defect.twins]

    def _taken(self, leading: ReportedClause, defect: Defect | None = None) -> Group:
        """The leading clause with what follows from it, which are open no more.

        That is what the defect fails, what says the same as the leading clause or as several that the defect fails, and
        what mostly fails where the leading clause does.
        """
        found, fails = self.open.pop(leading.id), defect.fails if defect else frozenset()
        said = Counter(sign for name in self.open.keys() & fails for sign in self.signs[name])
        common = self.signs[found.id].union(sign for sign, count in said.items() if count >= TELLING)
        follows = {
            name: clause
            for name, clause in self.open.items()
            if name in fails
            or self.signs[name] & common
            or (name in self.failing and self.known.follows(name, found.id))
        }
        self.open = {name: clause for name, clause in self.open.items() if name not in follows}
        return Group(found, tuple(follows.values()), defect)

    def _unexplained(self) -> list[Group]:
        found = []
        self.open |= {clause.id: clause for clause in self.others}
        while self.open:
            found.append(self._taken(next(iter(self.open.values()))))
        return found

    def _cause(self, group: Group) -> Cause:
        ids = tuple(clause.id for clause in group.follows)
        defect = group.defect or self._nearest(group.leading)
        if defect is None:
            return Cause(clause=group.leading.id, follows=ids)
        fails, here = defect.fails, set(self.failing)
        judged = fails & (here | self.passing)
        members = {group.leading.id, *ids}
        twin = next((t for t in defect.twins if t.partition("__")[0] == group.leading.id), defect.twins[0])
        return Cause(
            clause=group.leading.id,
            follows=ids,
            fits=group.defect is not None,
            defect=defect.words,
            twin=twin,
            precision=round(len(judged & here) / len(judged), 3),
            recall=round(len(members & fails) / len(members), 3),
        )

    def _nearest(self, leading: ReportedClause) -> Defect | None:
        """Of the defects that the leading clause is for and that do not fit, the one whose message is most alike."""
        if leading.id not in self.failing:
            return None
        words = {word for text in messages(leading) for word in text.split()}
        judged = self.failing.keys() | self.passing
        near = [
            defect
            for defect in self.known.defects
            if leading.id in defect.own
            and self._resemblance(defect) is not Resemblance.CONTRADICTED
            and len(defect.fails & self.failing.keys()) >= FITTING * len(defect.fails & judged)
        ]
        return max(near, key=lambda d: (len(words.intersection(d.says.split())), self.score(d)), default=None)


def messages(clause: ReportedClause) -> list[str]:
    """What was seen of a clause, in each of its trials."""
    return [text for text in dict.fromkeys([clause.message, *(r.message for r in clause.results)]) if text]


RELATION = re.compile(r"as if .*|transposed|the \w+ term is")


def signs(clause: ReportedClause) -> frozenset[str]:
    """What a failure has in common with others of one cause: an exception's text, or a telling pattern."""
    if clause.stale:
        return frozenset()
    if clause.status not in (FAIL, CRASHED):
        return frozenset([clause.message] if clause.message else [])
    found: set[str] = set()
    for text in messages(clause):
        lines = text.splitlines()
        if (raised := re.search(r" raised (\w+: .+)", lines[0])) is not None:
            found.add(NUMBER.sub("…", raised[1]))
        patterns = [line for line in lines if line.startswith(("pattern ", "at first "))]
        found.update(match[0] for line in patterns for match in [RELATION.search(line)] if match)
    return frozenset(found)
