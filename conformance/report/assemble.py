"""The report of a run, assembled from its plan and its outcome."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from conformance.judgement.result import DEVIATION, FAIL, INCONCLUSIVE, NOT_CLAIMED, PASS, STATUSES, WITHOUT, Result
from conformance.report.diagnosis import causes, unexplained
from conformance.report.features import claims
from conformance.report.met_runs import together
from conformance.report.outcome import Outcome
from conformance.report.plan import Plan, PlannedClause, PlannedGroup, PlannedTrial
from conformance.report.report import Report, ReportedClause, ReportedGroup, ReportedResult
from conformance.report.verdict import DECIDING, FAILING, exit_code, group_status
from conformance.specification.versions import SPECS

LARGEST = 1e308  # stands for an infinite ratio, since JSON has no infinity
VERDICTS = ("pass", "fail", "fail", "error")  # by exit code


@dataclass(frozen=True)
class RunSettings:
    """The settings of a run that its report contains or depends on.

    Attributes:
        lane, shard: the lane and shard of the report.
        narrowed: whether the run leaves out parts of clauses. A clause that passes may then fail in a full run.
    """

    profile: str
    seed: int
    lane: str | None
    shard: str | None
    narrowed: bool


def assemble(plan: Plan, outcome: Outcome, settings: RunSettings) -> Report:
    """The report of a run: the plan's clauses in their order, each with the results of its trials."""
    clauses = tuple(
        _with_deviation(_clause(planned, plan, outcome), plan.deviations.get(planned.id), settings)
        for planned in plan.clauses
    )
    found = claims(clauses, (name for name, group in plan.groups.items() if group.claimed))
    report = Report(
        target=plan.target.spec,
        target_name=plan.target.name,
        target_version=plan.target.version,
        versions=plan.versions,
        device=plan.device,
        device_name=plan.device_name,
        lane=settings.lane,
        spec=SPECS[-1],
        profile=settings.profile,
        seed=settings.seed,
        shard=settings.shard,
        verdict=VERDICTS[0],
        groups={name: _group(name, planned, clauses) for name, planned in plan.groups.items()},
        core=found.core,
        features=found.features,
        conventions=plan.conventions,
        clauses=clauses,
        causes=causes(unexplained(clauses, plan.forms)),
        errors=tuple(sorted(outcome.errors)),
        forms=plan.forms,
    )
    return dataclasses.replace(report, verdict=VERDICTS[exit_code(report)])


def _clause(planned: PlannedClause, plan: Plan, outcome: Outcome) -> ReportedClause:
    results = tuple(_result(trial, plan, outcome) for trial in planned.trials)
    status = next((s for s in DECIDING if any(r.status == s for r in results)), NOT_CLAIMED)
    decisive = next((result for result in results if result.status == status), None)
    message = decisive.message if decisive else None
    if status == NOT_CLAIMED:
        message = _why_not_claimed(planned)
    elif status == PASS:
        message = together(results) or next((result.message for result in results if result.message), None)
    ratios = [result.worst_ratio for result in results if result.worst_ratio is not None]
    return ReportedClause(
        id=planned.id,
        group=planned.group,
        level=planned.level,
        sentence=planned.sentence,
        feature=planned.feature,
        status=status,
        worst_ratio=max(ratios, default=None),
        examples=sum(result.examples for result in results),
        inconclusive=sum(result.inconclusive for result in results),
        launches=sum(result.launches for result in results),
        case=decisive.case if decisive else None,
        found=decisive.found if decisive else None,
        message=message,
        results=results,
    )


def _why_not_claimed(planned: PlannedClause) -> str:
    if planned.missing:
        return f"the target has no {', '.join(planned.missing)}"
    if planned.uninstalled:
        return f"{WITHOUT} {', '.join(planned.uninstalled)} (pip install 'loraspec[demo,fhe,remote]')"
    if planned.elsewhere:
        return "judged on the CPU alone, where ranks are processes"
    return "the target has no subject for it"


def _result(trial: PlannedTrial, plan: Plan, outcome: Outcome) -> ReportedResult:
    got = outcome.results.get(trial.key)
    if got is None:  # the trial was left out, or the suite failed before it
        got = Result(*trial.key, status=INCONCLUSIVE, message="not judged in this run")
    return ReportedResult(
        subject=got.subject,
        dtype=got.dtype,
        device=plan.device,
        lane=trial.lane,
        status=got.status,
        worst_ratio=None if got.worst_ratio is None else min(got.worst_ratio, LARGEST),
        examples=got.examples,
        inconclusive=got.inconclusive,
        launches=got.launches,
        seconds=round(got.seconds, 3),
        case=got.case,
        found=got.found,
        message=got.message,
        met=got.met,
    )


def _with_deviation(clause: ReportedClause, reason: str | None, settings: RunSettings) -> ReportedClause:
    """A clause with its declared deviation. A failure is then expected; a pass fails, since the deviation is stale."""
    if reason is None:
        return clause
    if clause.status in FAILING:
        return dataclasses.replace(clause, status=DEVIATION, reason=reason)
    if clause.status == PASS and not settings.narrowed:
        message = f"declared as a deviation ({reason}) but it no longer fails: remove the declaration"
        return dataclasses.replace(clause, status=FAIL, stale=True, reason=reason, message=message)
    return clause


def _group(name: str, planned: PlannedGroup, clauses: Iterable[ReportedClause]) -> ReportedGroup:
    members = [clause for clause in clauses if clause.group == name]
    counts = Counter(clause.status for clause in members)
    ratios = [clause.worst_ratio for clause in members if clause.worst_ratio is not None]
    return ReportedGroup(
        claimed=planned.claimed,
        missing=planned.missing,
        status=group_status(members) if planned.claimed else NOT_CLAIMED,
        counts={status: counts[status] for status in STATUSES if counts[status]},
        worst_ratio=max(ratios, default=None),
        examples=sum(clause.examples for clause in members),
    )
