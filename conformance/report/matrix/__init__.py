"""A matrix: what became of each clause on each of several targets, as plain data that every form of it is made from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from conformance.judgement.result import (
    CRASHED,
    DEVIATION,
    FAIL,
    INCONCLUSIVE,
    NOT_CLAIMED,
    PASS,
    STATUSES,
    UNSUPPORTED,
)
from conformance.report.matrix.columns import Column
from conformance.report.report import DECIDING, failing, gates, rerun
from conformance.specification.groups import groups

SCHEMA = Path(__file__).with_name("matrix.schema.json")
NOT_RUN = "not_run"  # the word for a cell that is null: the report of the target does not have the clause
BAD = (FAIL, CRASHED, INCONCLUSIVE)


def assemble(columns: Sequence[Column]) -> dict[str, Any]:
    """The matrix of these columns: `targets` in their order, and `clauses`, each with a cell for every target.

    A cell is null where the target has no report, or one without the clause.
    """
    found = [{c["id"]: c for c in column.clauses} for column in columns]
    first = {name: clause for clauses in reversed(found) for name, clause in clauses.items()}
    order = {group: position for position, group in enumerate(groups())}
    rows = sorted(_merged([list(clauses) for clauses in found]), key=lambda n: order.get(first[n]["group"], len(order)))
    clauses = []
    for name in rows:
        about = {key: first[name].get(key, "") for key in ("id", "group", "level", "sentence")}
        cells = [_cell(by[name], column) if name in by else None for by, column in zip(found, columns, strict=True)]
        clauses.append({**about, "cells": cells})
    return {"targets": [_about(column) for column in columns], "clauses": clauses}


def exit_code(columns: Iterable[Column]) -> int:
    """The worst of the columns' exit codes, which grow with it."""
    return max(column.code for column in columns)


def _merged(lists: list[list[str]]) -> list[str]:
    """All names, each once, in an order that keeps what only some lists have beside what it follows there."""
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


def _about(column: Column) -> dict[str, Any]:
    report = column.report or {}
    statuses = [clause["status"] for clause in column.clauses]
    passed = [clause["worst_ratio"] for clause in column.clauses if clause["status"] == PASS]
    return {
        "target": column.target,
        "name": column.name,
        "version": report.get("target_version"),
        "verdict": ("pass", "fail", "not_judged", "error")[column.code],
        "problem": column.problem,
        **{key: report.get(key) for key in ("versions", "device", "device_name", "lane", "spec", "profile", "seed")},
        **{key: report.get(key) for key in ("shard", "date", "seconds")},
        "counts": {status: statuses.count(status) for status in STATUSES if status in statuses},
        "worst_ratio": max((ratio for ratio in passed if ratio is not None), default=None),
        "examples": sum(clause["examples"] for clause in column.clauses),
    }


def _cell(clause: dict[str, Any], column: Column) -> dict[str, Any]:
    result, case = failing(clause), clause["case"]
    line = None
    if case is not None and result:
        where = result["device"], result["lane"]
        line = rerun(column.target, clause["id"], result["subject"], case, *where)
    return {
        "status": clause["status"],
        "gates": gates(clause),
        "worst_ratio": clause["worst_ratio"],
        "examples": clause["examples"],
        "inconclusive": clause["inconclusive"],
        "case": case,
        "found": clause.get("found"),
        "message": clause["message"],
        "reason": clause.get("reason"),
        "rerun": line,
        "script": column.script_path(clause["id"]),
        "dtypes": _dtypes(clause),
        "trials": [
            {key: r[key] for key in ("subject", "dtype", "lane", "status")}
            | {"message": None if r.get("message") == clause["message"] else r.get("message")}
            for r in clause["results"]
            if r["status"] != PASS
        ],
    }


def _dtypes(clause: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """By dtype the worst status, the worst ratio and the cases of its trials."""
    found = {}
    for dtype in dict.fromkeys(result["dtype"] for result in clause["results"]):
        results = [result for result in clause["results"] if result["dtype"] == dtype]
        status = next(s for s in DECIDING if s in {r["status"] for r in results})
        ratios = [r["worst_ratio"] for r in results if r["worst_ratio"] is not None]
        found[dtype] = {
            "status": DEVIATION if clause["status"] == DEVIATION and status in BAD else status,
            "worst_ratio": max(ratios, default=None),
            "examples": sum(r["examples"] for r in results),
        }
    return found


def summary(cells: Iterable[dict[str, Any] | None]) -> tuple[str, str]:
    """What became of a group on one target: a status, and how many of the clauses it has subjects for pass."""
    there = [cell for cell in cells if cell is not None]
    judged = [cell for cell in there if cell["status"] not in (NOT_CLAIMED, UNSUPPORTED)]
    if not judged:
        status = UNSUPPORTED if any(c["status"] == UNSUPPORTED for c in there) else NOT_CLAIMED if there else NOT_RUN
        return status, status.replace("_", " ")
    passed = sum(cell["status"] == PASS for cell in judged)
    status = PASS if passed == len(judged) else FAIL if any(cell["gates"] for cell in judged) else DEVIATION
    return status, f"{passed} of {len(judged)}"


def settled(clause: dict[str, Any]) -> bool:
    """Whether there is nothing to look at: each target passes the clause, or does not claim it."""
    return all(cell is None or cell["status"] in (PASS, NOT_CLAIMED) for cell in clause["cells"])
