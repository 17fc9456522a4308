"""Clauses as tests of a user's own pytest file: `parametrize` and the parameter that each test gets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraspec.check_report import CheckReport, Words, selected, usage_errors

if TYPE_CHECKING:
    from conformance.report.report import Report


@dataclass(frozen=True)
class ClauseTest:
    """A clause and the target that it judges.

    Attributes:
        id: the clause's id, such as `LIN-FWD`.   sentence: what it demands.
    """

    id: str
    sentence: str
    _judge: Callable[[], Report]

    def check(self) -> None:
        """Judge the target: the test fails, or is skipped where no dtype is supported, or is expected to fail.

        A declared deviation is expected to fail, and so is a clause that the specification only recommends.
        """
        import pytest

        from conformance.judgement.result import DEVIATION, UNSUPPORTED
        from conformance.report import terminal
        from conformance.report.verdict import FAILING, gates

        report = self._judge()
        (clause,) = report.clauses
        shown = CheckReport(report, called=report.target_name or "")
        lines = terminal.failure(clause, report, Path("loraspec-report")) if clause.status in FAILING else []
        text = "\n".join(line for line in map(shown.line, lines) if line is not None)
        if gates(clause):
            pytest.fail(text, pytrace=False)
        if clause.status == DEVIATION:
            pytest.xfail(f"declared deviation: {clause.reason}")
        if lines:
            pytest.xfail(text)
        if clause.status == UNSUPPORTED:
            pytest.skip(clause.message or "the target declares none of the clause's dtypes")


def parametrize(
    target: Any = None,
    *,
    groups: Words = None,
    clauses: Words = None,
    dtypes: Words = None,
    names: Mapping[str, Any] | None = None,
    profile: str = "quick",
    device: str = "cpu",
    seed: int = 0,
) -> Any:
    """Make one test of the decorated function for each clause that the target claims; it gets a `ClauseTest`.

        @loraspec.parametrize(MyLayer, groups=["layer"])
        def test_conformance(clause):
            clause.check()

    Arguments and errors are those of `check`; the clauses are judged in the process of the tests.
    """
    import pytest

    with usage_errors(target, names):
        selection = selected(target, names, groups, clauses, dtypes, profile=profile, device=device, seed=seed)
        from conformance.run import object_check

        plan, trials = object_check.planned(selection)

    def judged(clause: str) -> Callable[[], Report]:
        return lambda: object_check.judge_clause(clause, plan, trials, selection)

    claimed = [clause for clause in plan.clauses if clause.trials]
    tests = [pytest.param(ClauseTest(each.id, each.sentence, judged(each.id)), id=each.id) for each in claimed]
    return pytest.mark.parametrize("clause", tests)
