"""The outcome of a run: the result of each trial, the scripts that reproduce failures, and the suite's own failures."""

from __future__ import annotations

from dataclasses import dataclass, field

from conformance.judgement.result import Result
from conformance.report.plan import Plan
from conformance.report.report import SuiteFailure
from conformance.report.trial_keys import Key


@dataclass
class Outcome:
    """Everything that a run has found out so far.

    Attributes:
        results: by trial its result.   scripts: by trial the script that reproduces its failure.
        errors: failures of the suite itself.
    """

    results: dict[Key, Result] = field(default_factory=dict)
    scripts: dict[Key, str] = field(default_factory=dict)
    errors: list[SuiteFailure] = field(default_factory=list)

    def add(self, result: Result, script: str | None = None) -> None:
        """Record a result, and its script where it has one."""
        key = Key(result.clause, result.subject, result.dtype)
        self.results[key] = result
        if script:
            self.scripts[key] = script

    def reproducers(self, plan: Plan) -> dict[str, str]:
        """By clause the script of the first trial that has one, in the plan's order, whichever trial ended first."""
        found: dict[str, str] = {}
        for key in plan.keys:
            if key in self.scripts:
                found.setdefault(key.clause, self.scripts[key])
        return found
