"""The report: judgements collected by clause and group, the verdict, the exit code, and report.json."""

from __future__ import annotations

import json
import os
import shlex
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from conformance.errors import UsageError
from conformance.judgement.result import (
    CRASHED,
    DEVIATION,
    FAIL,
    INCONCLUSIVE,
    NOT_CLAIMED,
    PASS,
    STATUSES,
    UNSUPPORTED,
    WITHOUT,
    Result,
)
from conformance.report.trial_keys import keys
from conformance.run.selection import Selection
from conformance.specification.clause import MUST
from conformance.specification.versions import SPECS

SCHEMA = Path(__file__).with_name("report.schema.json")
LARGEST = 1e308  # an infinite ratio, as JSON can say it
DECIDING = (
    CRASHED,
    FAIL,
    INCONCLUSIVE,
    PASS,
    UNSUPPORTED,
)  # a clause has the first of these that a trial has


@dataclass
class Outcome:
    """Everything a run found out.

    Attributes:
        results: by clause, subject and dtype.   scripts: reproducers, likewise.
        errors: failures of the suite itself, each as (where, traceback).
    """

    results: dict[tuple[str, str, str], Result] = field(default_factory=dict)
    scripts: dict[tuple[str, str, str], str] = field(default_factory=dict)
    errors: list[tuple[str, str]] = field(default_factory=list)

    def add(self, result: Result, script: str | None = None) -> None:
        """Record one result, and its reproducer where it has one."""
        key = result.clause, result.subject, result.dtype
        self.results[key] = result
        if script:
            self.scripts[key] = script

    def reproducers(self, plan: dict[str, Any]) -> dict[str, str]:
        """By clause the reproducer of the first trial that has one, in the plan's order, whichever came first."""
        found: dict[str, str] = {}
        for key in keys(plan):
            if key in self.scripts:
                found.setdefault(key[0], self.scripts[key])
        return found


def assemble(plan: dict[str, Any], selection: Selection, outcome: Outcome) -> dict[str, Any]:
    """The report of a run: the plan's clauses in its order, each with what came of its trials."""
    clauses = [_clause(planned, plan, outcome) for planned in plan["clauses"]]
    for clause in clauses:
        _apply_deviation(clause, plan["deviations"].get(clause["id"]), selection)
    report = {
        "target": plan["target"]["spec"],
        "target_name": plan["target"]["name"],
        "target_version": plan["target"]["version"],
        "versions": plan["versions"],
        "device": plan["device"],
        "device_name": plan["device_name"],
        "lane": selection.lane,
        "spec": SPECS[-1],
        "profile": selection.profile,
        "seed": selection.seed,
        "shard": selection.shard,
        "verdict": "pass",
        "groups": {name: _group(name, about, clauses) for name, about in plan["groups"].items()},
        "clauses": clauses,
        "errors": [{"where": where, "traceback": text} for where, text in sorted(outcome.errors)],
    }
    report["verdict"] = ("pass", "fail", "fail", "error")[exit_code(report)]
    return report


def _clause(planned: dict[str, Any], plan: dict[str, Any], outcome: Outcome) -> dict[str, Any]:
    identity = {name: planned[name] for name in ("id", "group", "level", "sentence")}
    results = [_result(planned["id"], trial, plan, outcome) for trial in planned["trials"]]
    status = next((s for s in DECIDING if any(r["status"] == s for r in results)), NOT_CLAIMED)
    decisive = next((r for r in results if r["status"] == status), {})
    message = decisive.get("message")
    if status == NOT_CLAIMED:
        message = _why_not_claimed(planned)
    elif status == PASS:
        message = next((r["message"] for r in results if r["message"]), None)
    ratios = [r["worst_ratio"] for r in results if r["worst_ratio"] is not None]
    return {
        **identity,
        "status": status,
        "worst_ratio": max(ratios, default=None),
        "examples": sum(r["examples"] for r in results),
        "inconclusive": sum(r["inconclusive"] for r in results),
        "launches": sum(r["launches"] for r in results),
        "case": decisive.get("case"),
        "found": decisive.get("found"),
        "message": message,
        "results": results,
    }


def _why_not_claimed(planned: dict[str, Any]) -> str:
    if planned["missing"]:
        return f"the target has no {', '.join(planned['missing'])}"
    if planned.get("uninstalled"):
        return f"{WITHOUT} {', '.join(planned['uninstalled'])} (pip install 'loraspec[demo,fhe,remote]')"
    if planned.get("elsewhere"):
        return "judged on the CPU alone, where ranks are processes"
    return "the target has no subject for it"


def _result(clause: str, trial: dict[str, Any], plan: dict[str, Any], outcome: Outcome) -> dict[str, Any]:
    key = (clause, trial["subject"], trial["dtype"])
    got = outcome.results.get(key)
    if got is None:  # left out, or the suite failed before it came to this
        got = Result(*key, status=INCONCLUSIVE, message="not judged in this run")
    return {
        "subject": got.subject,
        "dtype": got.dtype,
        "device": plan["device"],
        "lane": trial["lane"],
        "status": got.status,
        "worst_ratio": None if got.worst_ratio is None else min(got.worst_ratio, LARGEST),
        "examples": got.examples,
        "inconclusive": got.inconclusive,
        "launches": got.launches,
        "seconds": round(got.seconds, 3),
        "case": got.case,
        "found": got.found,
        "message": got.message,
    }


def _apply_deviation(clause: dict[str, Any], reason: str | None, selection: Selection) -> None:
    """Turn an expected failure into a deviation, and a deviation that holds no longer into a failure."""
    if reason is None:
        return
    if clause["status"] in (FAIL, CRASHED, INCONCLUSIVE):
        clause["status"], clause["reason"] = DEVIATION, reason
    elif clause["status"] == PASS and not selection.narrowed:
        clause.update(status=FAIL, stale=True, reason=reason)
        clause["message"] = f"declared as a deviation ({reason}) but it no longer fails: remove the declaration"


def _group(name: str, about: dict[str, Any], clauses: Iterable[dict[str, Any]]) -> dict[str, Any]:
    members = [clause for clause in clauses if clause["group"] == name]
    counts = Counter(clause["status"] for clause in members)
    ratios = [clause["worst_ratio"] for clause in members if clause["worst_ratio"] is not None]
    return {
        "claimed": about["claimed"],
        "missing": about["missing"],
        "status": _group_status(members) if about["claimed"] else NOT_CLAIMED,
        "counts": {status: counts[status] for status in STATUSES if counts[status]},
        "worst_ratio": max(ratios, default=None),
        "examples": sum(clause["examples"] for clause in members),
    }


def _group_status(members: list[dict[str, Any]]) -> str:
    if any(gates(clause) for clause in members):
        return FAIL
    order = (PASS, DEVIATION, UNSUPPORTED, FAIL, CRASHED, INCONCLUSIVE)
    return next((s for s in order if any(c["status"] == s for c in members)), NOT_CLAIMED)


def gates(clause: dict[str, Any]) -> bool:
    """Whether a clause turns the verdict to fail."""
    required = clause["level"] == MUST or clause.get("stale", False)
    return bool(required and clause["status"] in (FAIL, CRASHED, INCONCLUSIVE))


def exit_code(report: dict[str, Any]) -> int:
    """0: every claimed MUST clause passes; 1: one does not, or a deviation is stale; 3: the suite failed."""
    if report["errors"]:
        return 3
    return 1 if any(gates(clause) for clause in report["clauses"]) else 0


def rerun(target: str, clause: str, subject: str, case: str, device: str = "cpu", lane: str = "cpu") -> str:
    """The command that checks exactly this case again."""
    words = ["loraspec", "rerun", shlex.quote(f"{clause} {target} {subject} {case}".strip())]
    if device != "cpu":
        words.append(f"--device {device}")
    elif lane == "interpreter":
        words.append("--lane interpreter")
    return " ".join(words)


def failing(clause: dict[str, Any]) -> dict[str, Any]:
    """The result that stands for a failing clause; the first with its message, or where none has one that failed."""
    bad: dict[str, Any] = next((r for r in clause["results"] if r["status"] in (CRASHED, FAIL, INCONCLUSIVE)), {})
    return next((r for r in clause["results"] if r.get("message", "") == clause["message"]), bad)


def prepare(folder: Path) -> None:
    """Make the report folder.

    Raises:
        UsageError: if nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(f"cannot write reports to {str(folder)!r}: {error.strerror or error}") from error


def finish(report: dict[str, Any], seconds: float) -> None:
    """Add to a report how long it took, and when it was done, in UTC."""
    report["seconds"] = seconds
    report["date"] = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def write(folder: Path, report: dict[str, Any], scripts: dict[str, str]) -> None:
    """Write report.json, report.html, junit.xml and the reproducers; each file is replaced whole or not at all."""
    from conformance.report import junit
    from conformance.report.matrix import columns, page

    texts = {
        "junit.xml": junit.document(report),
        "report.html": page.document([columns.Column.of(report, scripts)]),
        "report.json": json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
    }
    failed = {clause["id"] for clause in report["clauses"] if clause["status"] in (FAIL, DEVIATION)}
    for old in folder.glob("repro_*.py"):
        if old.stem.removeprefix("repro_") not in failed & set(scripts):
            old.unlink()
    for clause in sorted(failed & set(scripts)):
        replace(folder / f"repro_{clause}.py", scripts[clause])
    for name, text in texts.items():
        replace(folder / name, text)


def replace(path: Path, text: str) -> None:
    """Write a file under another name beside it, then rename it."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
