"""The result of the smoke check, stored in a file for other processes: a plan, or the reason why there is no plan."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from conformance.report.plan import Plan

NAME = "plan.json"


@dataclass(frozen=True)
class SmokeCheck:
    """A plan, or the reason why there is no plan.

    Attributes:
        error: a message about a mistake of the user.   failure: the traceback of a failure of the suite itself.
    """

    plan: Plan | None = None
    error: str | None = None
    failure: str | None = None

    def write(self, folder: Path) -> None:
        """Write the result to a folder, atomically."""
        found = {"plan": self.plan and self.plan.to_json(), "error": self.error, "failure": self.failure}
        temporary = folder / "plan.part"
        temporary.write_text(json.dumps({k: v for k, v in found.items() if v is not None}), encoding="utf-8")
        temporary.replace(folder / NAME)

    @classmethod
    def read(cls, folder: Path) -> SmokeCheck:
        """Read the result from a folder."""
        found = json.loads((folder / NAME).read_text(encoding="utf-8"))
        plan = Plan.from_json(found["plan"]) if "plan" in found else None
        return cls(plan, found.get("error"), found.get("failure"))
