"""Small reports and matrix columns made from them: three groups, a few clauses, two dtypes."""

from __future__ import annotations

from typing import Any

from conformance.judgement.result import Result
from conformance.report import files
from conformance.report.assemble import assemble
from conformance.report.matrix.columns import Column
from conformance.report.outcome import Outcome
from conformance.report.plan import Plan, PlannedClause, PlannedGroup, PlannedTrial, TargetInfo
from conformance.report.report import Report, ReportedClause, ReportedGroup, ReportedResult
from conformance.report.trial_keys import Key
from conformance.run.selection import Selection

DTYPES = ("float32", "bfloat16")
CLAUSES = {"LIN-FWD": "linear", "LIN-BWD-DA": "linear", "LIN-DET": "linear", "LAY-FWD": "layer", "MRG-MERGE": "merge"}
SHOULD = ("LIN-DET",)
HOSTILE = "</pre></script><script>document.title = 'owned'</script><img src='http://localhost:9/x' onerror='alert(1)'>"


def a_report(name: str = "mine", *, claims: tuple[str, ...] = tuple(CLAUSES), **found: Any) -> Report:
    """The report of a target that passes what it claims, but for what is said.

    Args:
        found: clause id with `_` for `-`, and its status and worst ratio in each of the two dtypes.
    """
    bad = {clause.replace("_", "-"): pairs for clause, pairs in found.items()}
    outcome = Outcome()
    for clause in claims:
        for dtype, (status, ratio) in zip(DTYPES, bad.get(clause, (("pass", 0.25), ("pass", 0.5))), strict=True):
            told = {} if status == "pass" else {"case": "m=3 k=4", "found": "m=99 k=4", "message": f"{dtype}: {status}"}
            outcome.add(Result(clause, "f", dtype, status=status, worst_ratio=ratio, examples=6, **told))
    return files.finish(assemble(_plan(name, claims), outcome, Selection(name).settings), 1.5)


def a_result(**about: Any) -> ReportedResult:
    """A passing result of a report, but for what is said."""
    most: dict[str, Any] = {"subject": "f", "dtype": "float32", "device": "cpu", "lane": "cpu", "status": "pass"}
    return ReportedResult(**(most | {"worst_ratio": None, "examples": 6} | about))


def a_clause(name: str, group: str, *results: ReportedResult, **about: Any) -> ReportedClause:
    """A passing MUST clause of a report, but for what is said."""
    most: dict[str, Any] = {"level": "MUST", "status": "pass", "worst_ratio": None, "case": None, "message": None}
    most |= {"examples": sum(r.examples for r in results), "inconclusive": sum(r.inconclusive for r in results)}
    return ReportedClause(id=name, group=group, results=results, **(most | about))


def report_of(*clauses: ReportedClause, **about: Any) -> Report:
    """A report of these clauses."""
    most: dict[str, Any] = {"target": "t", "versions": {}, "device": "cpu", "device_name": "a processor"}
    most |= {"spec": "1.0", "profile": "default", "verdict": "pass"}
    names = dict.fromkeys(clause.group for clause in clauses)
    groups = {name: ReportedGroup(claimed=True, status="pass", counts={"pass": 1}) for name in names}
    return Report(**(most | {"groups": groups, "clauses": clauses} | about))


def a_column(name: str = "mine", **options: Any) -> Column:
    """Return the matrix column of such a report, with a script for each failure."""
    made = a_report(name, **options)
    failed = [clause.id for clause in made.clauses if clause.status == "fail"]
    return Column.of(made, {clause: f'print("{clause}")\n' for clause in failed}, f"{name}/")


def _plan(name: str, claims: tuple[str, ...]) -> Plan:
    def clause(one: str) -> PlannedClause:
        trials = tuple(PlannedTrial(Key(one, "f", dtype), "cpu", declared=True, cases=6) for dtype in DTYPES)
        return PlannedClause(
            id=one,
            group=CLAUSES[one],
            level="SHOULD" if one in SHOULD else "MUST",
            sentence=f"What {one} demands.",
            missing=() if one in claims else ("LinearLoRA",),
            trials=trials if one in claims else (),
        )

    groups = {group: any(CLAUSES[one] == group for one in claims) for group in dict.fromkeys(CLAUSES.values())}
    return Plan(
        spec="1.0",
        target=TargetInfo(name, f"{name} layers", "1.2", "0"),
        versions={"python": "3.11", "loraspec": "0.1.0", "torch": "2.13.0", "triton": "3.8.0"},
        device="cpu",
        device_name="a processor",
        groups={group: PlannedGroup(claimed) for group, claimed in groups.items()},
        clauses=tuple(clause(one) for one in CLAUSES),
        deviations={},
    )
