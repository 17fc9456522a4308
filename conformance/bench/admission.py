"""Admission to the ranking: the timed subjects of a target must pass the quick profile in the timed dtypes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from conformance.errors import SuiteError
from conformance.report import report
from conformance.run.execution import Run
from conformance.run.selection import Selection

GROUPS = ("layer", "linear")  # the first group that a target claims is judged and timed


@dataclass(frozen=True)
class Admission:
    """The verdict of the quick profile on a target.

    Attributes:
        failing: the message of each clause that fails the verdict, by id; empty for a target that passes.
    """

    spec: str
    name: str
    version: str | None
    group: str
    clauses: int
    failing: dict[str, str | None]

    @property
    def passes(self) -> bool:
        """Whether the target is ranked."""
        return not self.failing


def examined(spec: str, dtypes: tuple[str, ...], device: str, clauses: tuple[str, ...] = ()) -> Admission:
    """Judge a target by the quick profile, in separate processes.

    Args:
        clauses: the clauses to judge; if empty, all of the group.

    Raises:
        UsageError: if the target does not import, or has no layer and no function to time.
        SuiteError: if the suite itself failed.
    """
    lane = "cpu" if device == "cpu" else "gpu"
    selection = Selection(spec, GROUPS, clauses, dtypes=dtypes, device=device, lane=lane, profile="quick")
    with Run(selection) as run:
        plan = run.plan
        group = next(name for name in GROUPS if plan["groups"].get(name, {}).get("claimed"))
        selection = dataclasses.replace(selection, groups=(group,))
        plan["groups"] = {group: plan["groups"][group]}
        plan["clauses"] = [clause for clause in plan["clauses"] if clause["group"] == group]
        found: dict[str, Any] = report.assemble(plan, selection, run.judge(plan))
    if found["errors"]:
        raise SuiteError("\n".join(error["traceback"] for error in found["errors"]))
    return Admission(
        spec=spec,
        name=found["target_name"],
        version=found["target_version"],
        group=group,
        clauses=sum(clause["status"] == "pass" for clause in found["clauses"]),
        failing={clause["id"]: clause["message"] for clause in found["clauses"] if report.gates(clause)},
    )
