"""Sentences of a page that a command writes, between two comments."""

from __future__ import annotations

import re
from pathlib import Path

from conformance.errors import UsageError


def write(page: Path, name: str, command: str, sentence: str) -> None:
    """Write a sentence between the marks of a page that have this name and command.

    Raises:
        UsageError: if the page has no such marks.
    """
    marks = f"<!-- {name}: written by `{command}` -->", f"<!-- end of {name} -->"
    text = page.read_text(encoding="utf-8")
    start, end = map(re.escape, marks)
    changed, count = re.subn(rf"(?<={start}\n).*?(?={end})", lambda _: sentence + "\n", text, flags=re.DOTALL)
    if count != 1:
        raise UsageError(f"{page} has no line {marks[0]!r} before a line {marks[1]!r}")
    page.write_text(changed, encoding="utf-8")
