"""The source locations of a clause: the file and line of its check and of its known-bad twins, found by its id."""

from __future__ import annotations

import re
from pathlib import Path

from conformance.specification.groups import FOLDER

ROOT = FOLDER.parents[1]
TWINS = ROOT / "tests" / "known_bad"


def checked_in(clause: str) -> str | None:
    """FILE:LINE of the clause's declaration; None if no file contains its id."""
    return next(iter(_places(clause, FOLDER)), None)


def twins_in(clause: str) -> list[str]:
    """FILE:LINE of each known-bad twin of the clause; none outside a checkout."""
    return _places(clause, TWINS)


def _places(clause: str, folder: Path) -> list[str]:
    literal = re.compile(rf'"{re.escape(clause)}"')
    found = []
    for path in sorted(folder.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        lines = dict.fromkeys(text.count("\n", 0, match.start()) + 1 for match in literal.finditer(text))
        found += [f"{path.relative_to(ROOT)}:{line}" for line in lines]
    return found
