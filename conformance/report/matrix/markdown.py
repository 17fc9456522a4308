"""A matrix as Markdown, for a README or the summary of a CI job."""

from __future__ import annotations

import re
from collections.abc import Iterable

from conformance.report.matrix import words
from conformance.report.matrix.assemble import group_summaries
from conformance.report.matrix.matrix import Matrix, MatrixTarget, Row
from conformance.report.terminal import ratio


def document(matrix: Matrix) -> str:
    """The whole document: targets, groups, the clauses that some target does not pass, and the folded other clauses."""
    targets, names = matrix.targets, [target.title for target in matrix.targets]
    about = ["verdict", "cases", "worst passing", "device", "torch", "profile", "date"]
    parts = [_table(["target", *about], ([name, *_about(t)] for name, t in zip(names, targets, strict=True)))]
    parts += [f"**{_plain(t.title)}**: {_plain(' '.join(words.problem(t)))}" for t in targets if t.problem]
    parts += [f"**{_plain(t.title)}**: {_plain('; '.join((t.claims, *t.forms)))}" for t in targets if t.claims]
    if matrix.rows:
        parts.append(words.legend(matrix) + ".")
        parts.append(_table(["group", *names], _groups(matrix)))
    open_ones = [row for row in matrix.rows if not row.settled]
    others = [row for row in matrix.rows if row.settled]
    if open_ones:
        parts.append(_table(["clause", *names], map(_row, open_ones)))
    if others:
        title = f"{len(others)} clauses that each target passes or does not claim"
        table = _table(["clause", *names], map(_row, others))
        parts.append(f"<details><summary>{title}</summary>\n\n{table}\n\n</details>")
    return "\n\n".join(parts) + "\n"


def _about(target: MatrixTarget) -> list[str]:
    if target.versions is None:
        return [words.verdict(target), *[""] * 6]
    return [
        words.verdict(target),
        f"{target.examples:,}",
        ratio(target.worst_ratio),
        f"{target.device}, {target.device_name}" if target.device_name else f"{target.device}",
        target.versions.get("torch") or "–",
        f"{target.profile}, shard {target.shard}" if target.shard else f"{target.profile}",
        (target.date or "not recorded")[:12].partition("T")[0],
    ]


def _groups(matrix: Matrix) -> Iterable[list[str]]:
    for name in matrix.groups:
        yield [name, *(words.group(*summary) for summary in group_summaries(matrix, name))]


def _row(row: Row) -> list[str]:
    return [row.id, *map(words.cell, row.cells)]


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(word if word == '---' else _plain(word) for word in line)} |" for line in lines)


def _plain(text: str) -> str:
    """A text on one line, with Markdown's special characters escaped."""
    return re.sub(r"([\\`*_{}\[\]<>|~&#])", r"\\\1", " ".join(text.split()))
