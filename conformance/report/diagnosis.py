"""The causes of a report's failures: failing clauses grouped, each group with the known defect that fails like it.

Known defects are the suite's known-bad twins. A defect is taken for the cause where the clauses that it fails fail here
and few of them pass; where several defects are present, they are found one after the other, the most telling first
(a weighted set cover). What no defect explains is grouped by what was seen.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum

from conformance.judgement.result import CRASHED, FAIL, PASS
from conformance.report.causes import Cause
from conformance.report.known_defects import Defect, DefectTable, table
from conformance.report.report import Report, ReportedClause
from conformance.report.verdict import FAILING, by_interest
from conformance.target.layer_form import LayerForm

PENALTY = 1.0  # for a clause that a defect would fail and that passes, in units of a clause that it explains
SAID, UNSAID = 1.5, 0.4  # factors where a message has the words of the twin's, and where it lacks them
VAGUE = (
    "worst",
    "error ÷ budget",
    "elements wrong",
    "raised",
    "expected",
    "returned",
    "shape",
    "dtype",
)
FITTING = 0.5  # least share of a defect's clauses that fail where they are judged


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
        self.failing = {c.id: c for c in failing if c.status in (FAIL, CRASHED) and not c.stale}
        self.others = [clause for clause in failing if clause.id not in self.failing]
        self.passing = {clause.id for clause in clauses if clause.status == PASS}
        self.groups = {clause.group for clause in self.failing.values()}
        self.signs = {clause.id: signs(clause) for clause in failing}

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
        scored = [(self.score(defect), defect) for defect in self.known.candidates if self._possible(defect)]
        best = max(scored, key=lambda one: (one[0], -len(one[1].twins)), default=None)
        return best[1] if best is not None and best[0] > 0 else None

    def _possible(self, defect: Defect) -> bool:
        """Whether a defect could be the cause: an own clause fails, or none is judged, and enough others agree."""
        if not defect.groups & self.groups or not defect.fails & set(self.open):
            return False
        own = [name for name in defect.own if name in self.failing or name in self.passing]
        if own and not any(name in self.open for name in own):
            return False
        hits, misses = defect.fails & set(self.failing), defect.fails & self.passing
        if len(hits) == 1 and self._told(defect) < SAID:
            return False  # one clause says too little, unless its message is the twin's
        return len(hits) >= FITTING * (len(hits) + len(misses))

    def score(self, defect: Defect) -> float:
        """How much a defect explains of what is not explained yet, less what it would fail and what passes."""
        gain = fsum(self.known.weight(name) for name in defect.fails if name in self.open)
        loss = fsum(self.known.weight(name) for name in defect.fails if name in self.passing)
        return (gain - PENALTY * loss) * self._told(defect)

    def _told(self, defect: Defect) -> float:
        texts = [text for name in defect.own if name in self.failing for text in messages(self.failing[name])]
        if not texts or defect.says in VAGUE or not defect.says:
            return 1.0
        if not any(re.search(rf"{re.escape(defect.says)}(?![.\d])", text) for text in texts):
            return UNSAID
        return SAID + len(defect.says) / 1000  # of two that agree, the one that says more

    def _taken(self, leading: ReportedClause, defect: Defect | None = None) -> Group:
        """The leading clause with what follows from it, which are open no more.

        That is what the defect fails, what says the same, and what mostly fails where the leading clause does.
        """
        found, fails = self.open.pop(leading.id), defect.fails if defect else frozenset()
        follows = {
            name: clause
            for name, clause in self.open.items()
            if name in fails
            or self.signs[name] & self.signs[found.id]
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
            and len(defect.fails & self.failing.keys()) >= FITTING * len(defect.fails & judged)
        ]
        return max(near, key=lambda d: (len(words.intersection(d.says.split())), self.score(d)), default=None)


def messages(clause: ReportedClause) -> list[str]:
    """What was seen of a clause, in each of its trials."""
    return [text for text in dict.fromkeys([clause.message, *(r.message for r in clause.results)]) if text]


NUMBER = re.compile(r"\d[\d.,e+-]*")
RELATION = re.compile(r"as if .*|transposed")


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
