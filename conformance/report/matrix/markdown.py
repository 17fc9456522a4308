"""A matrix as Markdown, for a README or the summary of a CI job."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from conformance.report.matrix import settled, summary, words
from conformance.report.terminal import ratio


def document(matrix: dict[str, Any]) -> str:
    """The whole: targets, groups, the clauses that a target does not pass, and all others folded away."""
    targets, clauses = matrix["targets"], matrix["clauses"]
    names = [words.title(target) for target in targets]
    about = ["verdict", "cases", "worst passing", "device", "torch", "profile", "date"]
    parts = [_table(["target", *about], ([name, *_about(t)] for name, t in zip(names, targets, strict=True)))]
    parts += [f"**{_plain(words.title(t))}**: {_plain(' '.join(words.problem(t)))}" for t in targets if t["problem"]]
    if clauses:
        parts.append(words.legend(matrix) + ".")
        parts.append(_table(["group", *names], _groups(clauses)))
    open_ones = [clause for clause in clauses if not settled(clause)]
    others = [clause for clause in clauses if settled(clause)]
    if open_ones:
        parts.append(_table(["clause", *names], map(_row, open_ones)))
    if others:
        title = f"{len(others)} clauses that each target passes or does not claim"
        table = _table(["clause", *names], map(_row, others))
        parts.append(f"<details><summary>{title}</summary>\n\n{table}\n\n</details>")
    return "\n\n".join(parts) + "\n"


def _about(target: dict[str, Any]) -> list[str]:
    if target["versions"] is None:
        return [words.verdict(target), *[""] * 6]
    return [
        words.verdict(target),
        f"{target['examples']:,}",
        ratio(target["worst_ratio"]),
        target["device"] + (f", {target['device_name']}" if target["device_name"] else ""),
        target["versions"].get("torch") or "–",
        target["profile"] + (f", shard {target['shard']}" if target["shard"] else ""),
        (target["date"] or "not recorded")[:12].partition("T")[0],
    ]


def _groups(clauses: list[dict[str, Any]]) -> Iterable[list[str]]:
    for name in dict.fromkeys(clause["group"] for clause in clauses):
        cells = zip(*(clause["cells"] for clause in clauses if clause["group"] == name), strict=True)
        yield [name, *(words.group(*summary(column)) for column in cells)]


def _row(clause: dict[str, Any]) -> list[str]:
    return [clause["id"], *map(words.cell, clause["cells"])]


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(word if word == '---' else _plain(word) for word in line)} |" for line in lines)


def _plain(text: str) -> str:
    """A text on one line that Markdown shows as it stands."""
    return re.sub(r"([\\`*_{}\[\]<>|~&#])", r"\\\1", " ".join(text.split()))
