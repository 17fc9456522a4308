"""The outcome of a run: the result of each trial, the scripts that reproduce failures, and the suite's own failures."""

from __future__ import annotations

from dataclasses import dataclass, field

from conformance.judgement.result import Result
from conformance.report.plan import Plan
from conformance.report.report import SuiteFailure
from conformance.report.trial_keys import Key


@dataclass
class Outcome:
    """The results of a run so far.

    Attributes:
        results: the result of each trial.   scripts: for failed trials, the script that reproduces the failure.
        errors: failures of the suite itself.
    """

    results: dict[Key, Result] = field(default_factory=dict)
    scripts: dict[Key, str] = field(default_factory=dict)
    errors: list[SuiteFailure] = field(default_factory=list)

    def add(self, result: Result, script: str | None = None) -> None:
        """Record a result and, if given, its script."""
        key = Key(result.clause, result.subject, result.dtype)
        self.results[key] = result
        if script:
            self.scripts[key] = script

    def reproducers(self, plan: Plan) -> dict[str, str]:
        """For each clause, the first script in the plan's order, which does not depend on the order of completion."""
        found: dict[str, str] = {}
        for key in plan.keys:
            if key in self.scripts:
                found.setdefault(key.clause, self.scripts[key])
        return found
