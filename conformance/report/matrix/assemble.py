"""Assemble a matrix from columns: put the clauses of several reports in one order, with a cell for each target."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from conformance.judgement.result import DEVIATION, FAIL, NOT_CLAIMED, PASS, STATUSES, UNSUPPORTED
from conformance.report import features
from conformance.report.matrix.columns import Column
from conformance.report.matrix.matrix import NOT_RUN, Cell, DtypeSummary, Matrix, MatrixTarget, OpenTrial, Row
from conformance.report.report import ReportedClause, ReportedResult
from conformance.report.rerun_line import rerun_line
from conformance.report.verdict import DECIDING, FAILING, failing_result, gates
from conformance.specification.groups import groups

VERDICTS = ("pass", "fail", "not_judged", "error")  # by exit code


def assemble(columns: Sequence[Column]) -> Matrix:
    """The matrix of some columns: targets in the order of the columns, clauses in the order of their groups."""
    found = [{clause.id: clause for clause in column.clauses} for column in columns]
    first = {name: clause for clauses in reversed(found) for name, clause in clauses.items()}
    order = {group: position for position, group in enumerate(groups())}
    names = sorted(_merged([list(clauses) for clauses in found]), key=lambda n: order.get(first[n].group, len(order)))
    return Matrix(tuple(map(_target, columns)), tuple(_row(first[name], found, columns) for name in names))


def exit_code(columns: Iterable[Column]) -> int:
    """The highest exit code of the columns, which is the worst."""
    return max(column.code for column in columns)


def _merged(lists: list[list[str]]) -> list[str]:
    """All distinct names. A name that is missing from some lists comes after its predecessor in another list."""
    merged: list[str] = []
    for names in lists:
        position = 0
        for name in names:
            if name in merged:
                position = merged.index(name) + 1
            else:
                merged.insert(position, name)
                position += 1
    return merged


def _row(about: ReportedClause, found: Sequence[Mapping[str, ReportedClause]], columns: Sequence[Column]) -> Row:
    cells = (
        _cell(clauses[about.id], column) if about.id in clauses else None
        for clauses, column in zip(found, columns, strict=True)
    )
    return Row(about.id, about.group, about.level, about.sentence, tuple(cells))


def _target(column: Column) -> MatrixTarget:
    report = column.report
    statuses = [clause.status for clause in column.clauses]
    passed = [clause.worst_ratio for clause in column.clauses if clause.status == PASS]
    return MatrixTarget(
        target=column.target,
        name=column.name,
        version=report.target_version if report else None,
        verdict=VERDICTS[column.code],
        problem=column.problem,
        versions=report.versions if report else None,
        device=report.device if report else None,
        device_name=report.device_name if report else None,
        lane=report.lane if report else None,
        spec=report.spec if report else None,
        profile=report.profile if report else None,
        seed=report.seed if report else None,
        shard=report.shard if report else None,
        date=report.date if report else None,
        seconds=report.seconds if report else None,
        counts={status: statuses.count(status) for status in STATUSES if status in statuses},
        worst_ratio=max((ratio for ratio in passed if ratio is not None), default=None),
        examples=sum(clause.examples for clause in column.clauses),
        claims=features.line(report) if report else "",
        forms=tuple(form.text for form in report.forms) if report else (),
    )


def _cell(clause: ReportedClause, column: Column) -> Cell:
    result, rerun = failing_result(clause), None
    if clause.case is not None and result is not None:
        where = result.device, result.lane
        rerun = rerun_line(column.target, clause.id, result.subject, clause.case, *where)
    return Cell(
        status=clause.status,
        gates=gates(clause),
        worst_ratio=clause.worst_ratio,
        examples=clause.examples,
        inconclusive=clause.inconclusive,
        case=clause.case,
        found=clause.found,
        message=clause.message,
        reason=clause.reason,
        rerun=rerun,
        script=column.script_path(clause.id),
        dtypes={
            dtype: _by_dtype(clause, [result for result in clause.results if result.dtype == dtype])
            for dtype in dict.fromkeys(result.dtype for result in clause.results)
        },
        trials=tuple(
            OpenTrial(r.subject, r.dtype, r.lane, r.status, None if r.message == clause.message else r.message)
            for r in clause.results
            if r.status != PASS
        ),
    )


def _by_dtype(clause: ReportedClause, results: Sequence[ReportedResult]) -> DtypeSummary:
    status = next(status for status in DECIDING if any(result.status == status for result in results))
    ratios = [result.worst_ratio for result in results if result.worst_ratio is not None]
    return DtypeSummary(
        DEVIATION if clause.status == DEVIATION and status in FAILING else status,
        max(ratios, default=None),
        sum(result.examples for result in results),
    )


def group_summaries(matrix: Matrix, group: str) -> list[tuple[str, str]]:
    """The summary of a group on each target: a status, and how many of the judged clauses pass."""
    rows = (row.cells for _, row in matrix.of_group(group))
    return [_summary(cells) for cells in zip(*rows, strict=True)]


def _summary(cells: Iterable[Cell | None]) -> tuple[str, str]:
    there = [cell for cell in cells if cell is not None]
    judged = [cell for cell in there if cell.status not in (NOT_CLAIMED, UNSUPPORTED)]
    if not judged:
        status = UNSUPPORTED if any(c.status == UNSUPPORTED for c in there) else NOT_CLAIMED if there else NOT_RUN
        return status, status.replace("_", " ")
    passed = sum(cell.status == PASS for cell in judged)
    status = PASS if passed == len(judged) else FAIL if any(cell.gates for cell in judged) else DEVIATION
    return status, f"{passed} of {len(judged)}"
