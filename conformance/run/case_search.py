"""Examine one clause on one subject and dtype: draw cases, judge each, shrink the first that fails."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from conformance.cases.case import Case, shrink
from conformance.isolation.monkeypatches import protect
from conformance.judgement.outcomes import Inconclusive, Refused, Violation
from conformance.judgement.result import ANY_DTYPE, Result
from conformance.run.profiles import Profile
from conformance.run.shared_rows import Row
from conformance.specification.clause import Clause
from conformance.target.check_case import check_case

protect(__name__)


TELLING = 8  # further cases to look at for a failure that shows a pattern
SHRINKING = 30.0  # seconds to search for a smaller case; a slow target would otherwise hold up the run


@dataclass
class Examination:
    """One clause, one subject, one dtype, and how many cases to spend on them.

    Attributes:
        whole: whether the run leaves out a dtype of the clause, whose rows of the covering array this trial takes over.
        on_case: called with each case before the case is checked, so that a crash can be traced to its case.
        last: the number of the case that `run` judged last, from 0.
    """

    clause: Clause
    subject: Any
    dtype: str
    profile: Profile
    on_case: Callable[[Case], None] = lambda case: None  # noqa: ARG005
    whole: bool = False
    last: int = -1

    def run(self) -> Result:
        """Draw and judge cases until the profile's number is reached or one fails."""
        started = time.perf_counter()
        result = self._blank()
        wanted, shared = self._planned()
        index, judged = 0, []
        while result.examples < wanted and result.status == "pass":
            # further cases replace the inconclusive ones; with too many of those the whole clause is inconclusive
            if result.inconclusive > wanted + 8:
                result.status, result.message = "inconclusive", self._last_reason
                break
            if shared and result.examples >= wanted - len(shared):
                judged.append(self._row(*shared.pop(0)))
            else:
                judged.append(self.case(index))
                index += 1
            self.last = len(judged) - 1
            self._judge(judged[-1], result)
        if result.status == "pass" and (searches := self.profile.searched(self.clause, self.subject.lane)):
            self._search(result, searches)
        if result.status == "pass":
            result.message, result.met = self.clause.cases.coverage(judged, self.subject)
        result.seconds = time.perf_counter() - started
        return result

    def only(self, number: int) -> Result:
        """Judge the case of `run` with this number alone, as if none before it were inconclusive.

        Args:
            number: from 0; one that `run` does not reach passes.
        """
        result = self._blank()
        wanted, shared = self._planned()
        own = wanted - len(shared)
        if number < wanted:
            self._judge(self.case(number) if number < own else self._row(*shared[number - own]), result)
        return result

    def _planned(self) -> tuple[int, list[Row]]:
        """The number of cases that a run needs, and its last ones: the rows that the clause takes for its group."""
        asked = (self.clause, self.subject.lane, self._drawn_dtype)
        shared = self.profile.shared(*asked, whole=self.whole)
        return self.profile.cases(*asked, whole=self.whole), list(shared)

    def probe(self) -> Result:
        """Try one case in a dtype that the target does not declare. The target should refuse it; no value is judged."""
        started = time.perf_counter()
        result = self._blank()
        result.status = "unsupported"
        try:
            self._check(self.case(0))
        except Refused:
            pass
        except (Violation, Inconclusive) as outcome:
            # a violation with a cause is an exception that the target raised, which also counts as a refusal
            if outcome.__cause__ is None:
                result.message = f"accepts {self.dtype}, which it does not declare"
        else:
            result.message = f"accepts {self.dtype}, which it does not declare"
        result.seconds = time.perf_counter() - started
        return result

    _last_reason = ""

    def _blank(self) -> Result:
        return Result(self.clause.id, self.subject.name, self.dtype, self.subject.device, self.subject.lane)

    @property
    def _drawn_dtype(self) -> str:
        return "" if self.dtype == ANY_DTYPE else self.dtype

    @property
    def _fixed(self) -> dict[str, str]:
        return {} if self.dtype == ANY_DTYPE else {"dtype": self.dtype}

    def case(self, index: int) -> Case:
        """Case number `index` of the clause in this dtype, fitted to the subject."""
        clause, dtype = self.clause, self._drawn_dtype
        case = clause.cases.draw(self.profile.seed, clause.id, index, dtype, clause.dtypes, self.profile.strength)
        return self._fitted(case)

    def _row(self, dtype: str, number: int) -> Case:
        """A shared row, which may be another dtype's, in the dtype of this trial."""
        cases = self.clause.cases
        row = cases.draw(self.profile.seed, self.clause.id, number, dtype, self.clause.dtypes)
        return self._fitted(cases.tame(dataclasses.replace(row, **self._fixed)))

    def _check(self, case: Case) -> float | None:
        self.on_case(case)
        return check_case(self.clause, self.subject, case)

    def _fitted(self, case: Case) -> Case:
        # Triton's interpreter takes about 10 ms for a program of 16³, so its cases are cut to a few programs
        cut = getattr(case, "cut_for", None)
        return self._within_limits(cut(self.subject.lane) if cut else case)

    def _within_limits(self, case: Case) -> Case:
        within = getattr(self.subject, "within_limits", None)
        return within(case) if within else case

    def _judge(self, case: Case, result: Result) -> None:
        try:
            ratio = self._check(case)
        except Inconclusive as reason:
            result.inconclusive += 1
            self._last_reason = f"{reason} ({case})"
        except Refused as refusal:
            result.status, result.case, result.message = (
                "fail",
                str(case),
                f"{refusal} on an input it declares",
            )
        except Violation as violation:
            self._failed(case, violation, result)
        else:
            result.examples += 1
            if ratio is not None:
                result.worst_ratio = max(ratio, result.worst_ratio or 0.0)

    def _failed(self, case: Case, violation: Violation, result: Result) -> None:
        case, violation = self._telling(case, violation)
        at_first = _pattern(violation)
        deadline = time.perf_counter() + SHRINKING
        smallest = shrink(
            self.clause.cases,
            case,
            lambda smaller: time.perf_counter() < deadline and self._fails(smaller),
            0 if violation.is_slow else self.profile.shrinks,
        )
        if smallest != case:
            try:
                self._check(smallest)
                smallest = case  # the smaller case fails no more, so report the original one
            except Violation as shrunk:
                violation = shrunk
            except (Inconclusive, Refused):
                smallest = case
        result.status, result.case, result.found = "fail", str(smallest), str(case)
        result.message, result.worst_ratio = str(violation), violation.ratio
        result.examples += 1
        if at_first and at_first != _pattern(violation):
            # the shrunk case may be too small to show the pattern of the original one
            result.message += f"\nat first {at_first}"
        tried = self.profile.shrinks and not violation.is_slow
        neighbours = self._passing_neighbours(smallest) if tried else ""
        if neighbours:
            result.message += f"\nnearby   {neighbours}"

    def _telling(self, case: Case, violation: Violation) -> tuple[Case, Violation]:
        """A failing case that shows a pattern: one of the next cases, if this one has a single element."""
        for index in range(case.seed + 1, case.seed + 1 + TELLING if _is_single(violation) else 0):
            further = self.case(index)
            try:
                self._check(further)
            except Violation as shown:
                if not _is_single(shown):
                    return further, shown
            except (Inconclusive, Refused):
                continue
        return case, violation

    def _fails(self, case: Case) -> bool:
        if self._within_limits(case) != case:
            return False  # the target need not accept it
        try:
            self._check(case)
        except Violation:
            return True
        except (Inconclusive, Refused):
            return False
        return False

    def _passing_neighbours(self, case: Case) -> str:
        """The sizes that pass when reduced by one. They show the boundary of a tail, a rank or a block."""
        passing = []
        for name, options in self.clause.cases.values.items():
            value = getattr(case, name)
            if not isinstance(value, int) or isinstance(value, bool) or value <= min(options):
                continue
            one_less: dict[str, Any] = {name: value - 1}
            smaller = self.clause.cases.tame(dataclasses.replace(case, **one_less))
            if smaller == case:
                continue
            try:
                self._check(smaller)
            except (Violation, Inconclusive, Refused):
                continue
            passing.append(f"{name}={value - 1}")
        return f"{', '.join(passing)} passes" if passing else ""

    def _search(self, result: Result, searches: int) -> None:
        """Let Hypothesis search the same space for a failing case, and shrink the case it finds."""
        from hypothesis import HealthCheck, Phase, errors, given, settings

        seen: list[Violation] = []

        @settings(
            max_examples=searches,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink],
            report_multiple_bugs=False,
        )
        @given(self.clause.cases.strategy(**self._fixed))
        def holds(case: Case) -> None:
            case = self._fitted(case)
            self._judge_or_raise(case, result, seen)

        try:
            holds()
        except (Violation, errors.Flaky) as error:
            violation = error if isinstance(error, Violation) else seen[-1]
            case = getattr(violation, "case", "")
            result.status, result.case, result.found = "fail", str(case), str(getattr(seen[0], "case", case))
            result.message, result.worst_ratio = str(violation), violation.ratio
            if not isinstance(error, Violation):
                result.message += "\nflaky    the same case also passes: the target is not deterministic"

    def _judge_or_raise(self, case: Case, result: Result, seen: list[Violation]) -> None:
        try:
            ratio = self._check(case)
        except (Inconclusive, Refused):
            result.inconclusive += 1
        except Violation as violation:
            violation.case = case  # type: ignore[attr-defined]
            seen.append(violation)
            raise
        else:
            result.examples += 1
            if ratio is not None:
                result.worst_ratio = max(ratio, result.worst_ratio or 0.0)


def _pattern(violation: Violation) -> str:
    """The pattern line of a violation's message, or an empty string if the message has no such line."""
    lines = (line.partition("pattern  ") for line in str(violation).splitlines())
    return next((rest for before, found, rest in lines if found and not before), "")


def _is_single(violation: Violation) -> bool:
    """Whether the violation's only element is wrong, which is no pattern."""
    return _pattern(violation).startswith("1 of 1 ")
