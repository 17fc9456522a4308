"""JSON with one line per entry, so that diffs of generated data are readable."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write(path: Path, found: Mapping[str, Any]) -> None:
    """Write a mapping with one line per entry; entries of inner mappings and lists get their own lines."""
    parts = ",\n".join(f" {_text(name)}: {_entries(value)}" for name, value in found.items())
    path.write_text(f"{{\n{parts}\n}}\n", encoding="utf-8")


def _entries(value: Any) -> str:
    """Format a non-empty mapping or list with one line per entry, anything else on one line."""
    if not value or not isinstance(value, dict | list):
        return _text(value)
    if isinstance(value, dict):
        lines, (opening, closing) = [f"{_text(name)}: {_text(entry)}" for name, entry in value.items()], "{}"
    else:
        lines, (opening, closing) = [_text(entry) for entry in value], "[]"
    return f"{opening}\n  " + ",\n  ".join(lines) + f"\n {closing}"


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
