"""`python -m tests.support.diagnosis_table` writes the table of known defects that the suite compares failures with."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from conformance.report.known_defects import TABLE
from tests import known_bad
from tests.support import recorded_failures
from tests.support.recorded_failures import Sets
from tests.support.twins import REGISTRY


def document(sets: Sets) -> str:
    """The table as JSON, one line per twin: the words of its defect, its message, its topic, the clauses it fails."""
    lines = []
    for name in sorted(REGISTRY):
        bad = REGISTRY[name]
        entry = {
            "words": bad.words,
            "says": bad.says,
            "topic": bad.module.removeprefix(f"{known_bad.__name__}.").replace(".", "/"),
            "groups": list(bad.groups),
            "fails": sets[name],
        }
        lines.append(f" {json.dumps(name)}: {json.dumps(entry, ensure_ascii=False)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def write(sets: Sets, path: Path = TABLE) -> None:
    """Write the table."""
    path.write_text(document(sets), encoding="utf-8")


if __name__ == "__main__":
    write(recorded_failures.sets_in())
    sys.stdout.write(f"wrote {TABLE}\n")
