"""Where each known-bad twin first fails its own clause, so that a test need not judge the cases before."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path

FILE = Path(__file__).resolve().parents[1] / "known_bad" / "first_failures.json"
Place = tuple[str, str, int]  # subject, dtype, and the number of the case in profile `quick`


@cache
def read() -> dict[str, Place]:
    """Read the recorded places by the names of twins; a twin without one fails at its first case."""
    return {name: (subject, dtype, number) for name, (subject, dtype, number) in json.loads(FILE.read_text()).items()}


def write(found: Mapping[str, Place | None], twins: set[str]) -> None:
    """Record places that were found, one line each; drop twins that are gone or fail at their first case."""
    places = {name: place for name, place in {**read(), **found}.items() if place and name in twins}
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(places[name])}" for name in sorted(places))
    FILE.write_text(f"{{\n{lines}\n}}\n")
    read.cache_clear()
