"""Small reports and matrix columns made from them: three groups, a few clauses, two dtypes."""

from __future__ import annotations

from typing import Any

from conformance.judgement.result import Result
from conformance.report import report
from conformance.report.matrix.columns import Column
from conformance.report.report import Outcome
from conformance.run.selection import Selection

DTYPES = ("float32", "bfloat16")
CLAUSES = {"LIN-FWD": "linear", "LIN-BWD-DA": "linear", "LIN-DET": "linear", "LAY-FWD": "layer", "MRG-MERGE": "merge"}
SHOULD = ("LIN-DET",)
HOSTILE = "</pre></script><script>document.title = 'owned'</script><img src='http://localhost:9/x' onerror='alert(1)'>"


def a_report(name: str = "mine", *, claims: tuple[str, ...] = tuple(CLAUSES), **found: Any) -> dict[str, Any]:
    """Return the report of a target that passes every claimed clause, except those in `found`.

    Args:
        found: clause id with `_` for `-`, and its status and worst ratio in each of the two dtypes.
    """
    bad = {clause.replace("_", "-"): pairs for clause, pairs in found.items()}
    outcome = Outcome()
    for clause in claims:
        for dtype, (status, ratio) in zip(DTYPES, bad.get(clause, (("pass", 0.25), ("pass", 0.5))), strict=True):
            told = {} if status == "pass" else {"case": "m=3 k=4", "found": "m=99 k=4", "message": f"{dtype}: {status}"}
            outcome.add(Result(clause, "f", dtype, status=status, worst_ratio=ratio, examples=6, **told))
    made = report.assemble(_plan(name, claims), Selection(name), outcome)
    report.finish(made, 1.5)
    return made


def a_column(name: str = "mine", **options: Any) -> Column:
    """Return the matrix column of such a report, with a script for each failure."""
    made = a_report(name, **options)
    failed = [clause["id"] for clause in made["clauses"] if clause["status"] == "fail"]
    return Column.of(made, {clause: f'print("{clause}")\n' for clause in failed}, f"{name}/")


def _plan(name: str, claims: tuple[str, ...]) -> dict[str, Any]:
    def clause(one: str) -> dict[str, Any]:
        trials = [{"subject": "f", "dtype": d, "lane": "cpu", "declared": True, "cases": 6} for d in DTYPES]
        level = "SHOULD" if one in SHOULD else "MUST"
        missing = [] if one in claims else ["LinearLoRA"]
        about = {"id": one, "group": CLAUSES[one], "level": level, "sentence": f"What {one} demands."}
        return {**about, "missing": missing, "trials": trials if one in claims else []}

    groups = {group: any(CLAUSES[one] == group for one in claims) for group in dict.fromkeys(CLAUSES.values())}
    return {
        "target": {"spec": name, "name": f"{name} layers", "version": "1.2", "fingerprint": "0"},
        "versions": {"python": "3.11", "loraspec": "0.1.0", "torch": "2.13.0", "triton": "3.8.0"},
        "device": "cpu",
        "device_name": "a processor",
        "groups": {group: {"claimed": claimed, "missing": []} for group, claimed in groups.items()},
        "clauses": [clause(one) for one in CLAUSES],
        "deviations": {},
    }
