"""A report on a terminal: a table of groups, each failure with its case, and the verdict."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from conformance.judgement.result import CRASHED, DEVIATION, FAIL, INCONCLUSIVE, NOT_CLAIMED, PASS, UNSUPPORTED, WITHOUT
from conformance.report import features, met_runs
from conformance.report.causes import Cause
from conformance.report.diagnosis import led
from conformance.report.known_defects import table
from conformance.report.plan import Plan
from conformance.report.report import Report, ReportedClause, ReportedResult
from conformance.report.rerun_line import rerun_line
from conformance.report.verdict import FAILING, failing_result, gates
from conformance.specification import addresses

if TYPE_CHECKING:
    from rich.console import Console

    from conformance.specification.spec_page import Entry

IN_FULL = 10  # causes shown in full; each further cause takes one line
STYLES = {PASS: "green", FAIL: "bold red", CRASHED: "bold red", INCONCLUSIVE: "yellow", DEVIATION: "yellow"}
COLUMNS = (PASS, FAIL, CRASHED, INCONCLUSIVE, DEVIATION, UNSUPPORTED, NOT_CLAIMED)


def console(*, stderr: bool = False, stream: TextIO | None = None) -> Console:
    """A console that wraps for terminals and keeps lines whole in files and pipes; for standard output by default."""
    from rich.console import Console

    stream = stream or (sys.stderr if stderr else sys.stdout)
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")  # formulas contain characters that a narrow encoding lacks
    width = None if stream.isatty() else 120
    return Console(file=stream, width=width, highlight=False, soft_wrap=True, markup=False)


def show(report: Report, folder: Path, *, quiet: bool = False, verbose: bool = False) -> None:
    """Print a report: the table unless quiet, then the failures, then the verdict.

    If verbose, also print what the lives of each trial have met.
    """
    out = console()
    if not quiet:
        out.print(_title(report))
        out.print(_table(report))
        for name, group in report.groups.items():
            if not group.claimed:
                out.print(f"  {name:<9} not claimed: lacks {', '.join(group.missing)}")
    _show_forms(report, [clause for clause in report.clauses if clause.status in FAILING], out)
    found = led(report)
    for clause, cause in found[:IN_FULL]:
        out.print()
        for line in failure(clause, report, folder, cause):
            out.print(line)
    if rest := found[IN_FULL:]:
        out.print(f"\n{len(rest)} more causes, in full in {folder / 'report.json'}:")
        for clause, cause in rest:
            more = len(cause.follows)
            out.print(f"{_word(clause)} {clause.id}{f' and {more} that follow' * bool(more)}  {clause.sentence}")
    _show_remarks(report, out, verbose=verbose)
    for error in report.errors:
        out.print(f"\nThe suite failed at {error.where}:\n{error.traceback}")
    out.print()
    if text := features.line(report):
        out.print(text)
    out.print(verdict(report), style="bold green" if report.verdict == "pass" else "bold red")
    out.print(f"report   {folder / 'report.json'}")


def _show_forms(report: Report, bad: list[ReportedClause], out: Console) -> None:
    """Print each form of the target's layers, with the clauses that fail because of it."""
    if report.forms:
        out.print()
    for form in report.forms:
        out.print(f"preflight {form.text}")
        because = [clause.id for clause in bad if form.explains(clause.message)]
        because.sort(key=lambda name: name.count("-"))  # LAY-FWD before LAY-FWD-MIXED
        if because:
            count = f"{len(because)} clauses fail" if because[1:] else "1 clause fails"
            out.print(f"          {count} because of it: {listed(because)}")


def _title(report: Report) -> str:
    versions = report.versions
    triton = f", triton {versions['triton']}" if versions["triton"] else ""
    device = f"{report.device} ({report.device_name}, torch {versions['torch']}{triton})"
    return f"{report.title} on {device}, spec {report.spec}, profile {report.profile}" + _shard(report)


def _shard(report: Report) -> str:
    return f", shard {report.shard}" if report.shard else ""


def _table(report: Report) -> Any:
    from rich import box
    from rich.table import Table

    groups = [group for group in report.groups.values() if group.claimed]
    shown = [s for s in COLUMNS if s == PASS or any(s in g.counts for g in groups)]
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("group")
    for status in shown:
        table.add_column(status.replace("_", " "), justify="right", style=STYLES.get(status))
    table.add_column("cases", justify="right")
    table.add_column("worst ÷ budget", justify="right")
    for name, group in report.groups.items():
        if not group.claimed:
            continue
        counts = [str(group.counts.get(status, "")) for status in shown]
        table.add_row(name, *counts, f"{group.examples:,}", ratio(group.worst_ratio))
    return table


def ratio(value: float | None) -> str:
    """The worst error ÷ budget as text."""
    return "–" if value is None else "inf" if value >= 1e308 else f"{value:.2f}" if value < 100 else f"{value:.3g}"


def failure(clause: ReportedClause, report: Report, folder: Path, cause: Cause | None = None) -> list[str]:
    """A failing clause, as lines: its sentence, the target, the case, the message, and the command that reruns it.

    Args:
        cause: what the clause leads; the lines then say what fails like it, and what follows.
    """
    result = failing_result(clause)
    lines = [f"{_word(clause)} {clause.id}  {clause.sentence}     loraspec explain {clause.id}"]
    lines += _cause_lines(clause, cause)
    if clause.stale or result is None:
        return [*lines, f"why      {clause.message}"]
    where = f"{result.device} ({report.device_name})" if result.lane == "gpu" else result.lane
    lines.append(f"target   {report.title}, {result.subject}, {result.dtype}, {where}")
    if clause.case is not None:
        found = clause.found
        origin = f"     shrunk from {found}" if found and found != clause.case else ""
        lines.append(f"case     {clause.case}{origin}")
    lines += message_lines(clause.message)
    lines += _others(clause, result)
    if clause.case is not None:
        again = rerun_line(report.target, clause.id, result.subject, clause.case, result.device, result.lane)
        lines.append(f"rerun    {again}")
    script = folder / f"repro_{clause.id}.py"
    if script.exists():
        alone = not re.search(r"(?m)^from conformance\b", script.read_text(encoding="utf-8"))
        lines.append(f"script   {script}{' runs without the suite' if alone else ''}")
    return lines


def _cause_lines(clause: ReportedClause, cause: Cause | None) -> list[str]:
    if cause is None:
        return []
    lines = [] if clause.status == INCONCLUSIVE or clause.stale else [f"cause    {cause.sentence}"]
    if cause.follows:
        count = len(cause.follows)
        lines.append(f"follows  {listed(list(cause.follows))} ({count} clause{'s' * (count > 1)})")
    return lines


def message_lines(message: str | None) -> list[str]:
    """The lines of a message, each with a label (`worst`, `pattern`, …); an unlabelled first line gets `seen`."""
    lines = (message or "").splitlines()
    labels = ("worst", "pattern", "at first", "nearby", "flaky", "at", "block", "lived", "")
    labelled = tuple(f"{label:<9}" for label in labels)
    return [
        line if line.startswith(labelled) else f"{'seen' if not i else '':<9}{line}" for i, line in enumerate(lines)
    ]


def _others(clause: ReportedClause, shown: ReportedResult) -> list[str]:
    others = [r for r in clause.results if r.status in FAILING and r is not shown]
    if not others:
        return []
    return ["also     " + ", ".join(f"{r.subject} {r.dtype}" for r in others)]


def _word(clause: ReportedClause) -> str:
    word = {FAIL: "FAIL", CRASHED: "CRASHED", INCONCLUSIVE: "INCONCLUSIVE"}[clause.status]
    return word if gates(clause) else f"{word} (SHOULD)"


def _show_remarks(report: Report, out: Console, *, verbose: bool) -> None:
    deviations = [clause for clause in report.clauses if clause.status == DEVIATION]
    remarks = [f"DEVIATION {clause.id}: {clause.reason}" for clause in deviations]
    noted: dict[str, list[str]] = {}
    for clause in report.clauses:
        message = clause.message or ""
        if message.startswith(WITHOUT):
            noted.setdefault(message, []).append(clause.id)
        for result in clause.results:
            if result.status == UNSUPPORTED and result.message:
                noted.setdefault(f"{result.subject} {result.message}", []).append(clause.id)
            elif result.status == PASS and result.message and (verbose or result.met is None):
                noted.setdefault(f"{result.subject} {result.dtype}, {result.message}", []).append(clause.id)
    remarks += [f"NOTE {text}: {listed(ids)}" for text, ids in noted.items()]
    remarks += met_runs.lines(report)
    if remarks:
        out.print()
    for remark in remarks:
        out.print(remark)


def listed(ids: list[str]) -> str:
    """The first five ids, and the number of the others."""
    return ", ".join(ids[:5]) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")


def verdict(report: Report) -> str:
    """The last line of a report: the verdict, the number of clauses of each status, and the number of cases."""
    clauses = report.clauses
    count = {s: sum(c.status == s for c in clauses) for s in COLUMNS}
    parts = [f"{count[PASS]} clauses pass"]
    for status, word in ((FAIL, "fail"), (CRASHED, "crashed"), (INCONCLUSIVE, "inconclusive")):
        if count[status]:
            should = sum(c.status == status and not gates(c) for c in clauses)
            parts.append(f"{count[status]} {word}" + (f" ({should} of them SHOULD)" if should else ""))
    parts += [f"{count[DEVIATION]} declared deviations"] if count[DEVIATION] else []
    parts += [f"{count[UNSUPPORTED]} unsupported"] if count[UNSUPPORTED] else []
    parts += [f"{count[NOT_CLAIMED]} not claimed"] if count[NOT_CLAIMED] else []
    interpreted = sum(clause.launches > 0 for clause in clauses)
    parts += [f"{interpreted} clauses ran Triton kernels (interpreted)"] if interpreted else []
    examples = sum(clause.examples for clause in clauses)
    rated = [c for c in clauses if c.status == PASS and c.worst_ratio is not None]
    worst = max(rated, key=lambda clause: clause.worst_ratio or 0.0, default=None)
    text = f"{report.verdict.upper()} {report.target_name}{_shard(report)}: {', '.join(parts)}; {examples:,} cases"
    if worst is not None:
        text += f", worst passing error ÷ budget {ratio(worst.worst_ratio)} ({worst.id})"
    return f"{text}; {report.seconds or 0:.0f} s"


def show_plan(plan: Plan) -> None:
    """Print a plan: the claimed groups, and the names that the target lacks for the others."""
    out = console()
    out.print(f"{plan.target.name} imports and binds; on {plan.device} ({plan.device_name}) it claims")
    for name, about in plan.groups.items():
        clauses = [clause for clause in plan.clauses if clause.group == name]
        subjects = dict.fromkeys(trial.key.subject for clause in clauses for trial in clause.trials)
        claimed = sum(bool(clause.trials) for clause in clauses)
        if about.claimed:
            out.print(f"  {name:<9} {claimed} of {len(clauses)} clauses on {', '.join(subjects)}")
        else:
            out.print(f"  {name:<9} not claimed: lacks {', '.join(about.missing)}")
    for form in plan.forms:
        out.print(f"preflight {form.text}")


def explanation(entry: Entry) -> list[str]:
    """A clause in full, as lines."""
    lines = [f"{entry.id} ({entry.level}, group {entry.group})", "", f"  {entry.sentence}", ""]
    lines.append(f"dtypes    {', '.join(entry.dtypes) or 'any'}")
    lines += [f"needs     {', '.join(entry.needs)}"] if entry.needs else []
    lines += [f"judges    {', '.join(entry.subjects)}"] if entry.subjects else []
    if entry.cases:
        lines.append("cases     any combination of")
        lines += [f"            {field}" for field in entry.cases.split()]
    lines += [f"why       {entry.why}"] if entry.why else []
    lines.append(f"checked in {addresses.checked_in(entry.id)}")
    twins = addresses.twins_in(entry.id)
    lines += ["twins in"] * bool(twins) + [f"            {place}" for place in twins]
    killers = known_bad(entry.id)
    lines += ["killed by"] * bool(killers) + [f"            {name}" for name in killers]
    return lines


def known_bad(clause: str) -> list[str]:
    """Names of the known-bad implementations that fail a clause."""
    return sorted(defect.twins[0] for defect in table().defects if clause in defect.fails)
