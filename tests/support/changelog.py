"""The clauses of conformance/CHANGELOG.md, release by release: `python -m tests.support.changelog` writes the newest.

The older sections list every clause with which they were released. From them and SPEC.md follow the clauses that the
newest section adds, removes, and gives another level; its other text is written by hand.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from conformance.specification import spec_page
from conformance.specification.groups import groups

PAGE = Path(spec_page.__file__).parents[1] / "CHANGELOG.md"
BEGIN, END = "<!-- clauses: written by `python -m tests.support.changelog` -->", "<!-- end of the clauses -->"
RELEASE = re.compile(r"^## (\S+)", re.MULTILINE)
ID = r"[A-Z0-9]+(?:-[A-Z0-9]+)+"
FREE = ("0.1.0", "0.2.0")  # releases whose new clauses could be MUST; later ones begin as SHOULD


@dataclass(frozen=True)
class Section:
    """One release.

    Attributes:
        added: the level of each new clause.   removed: ids.   levels: the new level of each clause that has another.
    """

    release: str
    added: Mapping[str, str]
    removed: tuple[str, ...]
    levels: Mapping[str, str]


def sections(text: str) -> list[Section]:
    """The releases of the page, newest first."""
    starts = [*RELEASE.finditer(text)]
    ends = [*(start.start() for start in starts[1:]), len(text)]
    return [_section(start[1], text[start.end() : end]) for start, end in zip(starts, ends, strict=True)]


def _section(release: str, text: str) -> Section:
    added: dict[str, str] = {}
    removed: tuple[str, ...] = ()
    levels: dict[str, str] = {}
    for line in re.findall(r"^- .*(?:\n  .*)*", text, re.MULTILINE):
        ids = re.findall(rf"\b{ID}\b", line)
        if found := re.match(r"- New (MUST|SHOULD) ", line):
            added |= dict.fromkeys(ids, found[1])
        elif line.startswith("- Removed: "):
            removed = tuple(ids)
        elif found := re.match(r"- Now (MUST|SHOULD)\b", line):
            levels |= dict.fromkeys(ids, found[1])
    return Section(release, added, removed, levels)


def released(older: list[Section]) -> dict[str, str]:
    """The level of each clause after some releases, newest first."""
    found: dict[str, str] = {}
    for section in reversed(older):
        found |= section.added | section.levels
        for name in section.removed:
            found.pop(name)
    return found


def expected(release: str, older: list[Section]) -> Section:
    """What SPEC.md adds to, removes from and changes in the older releases."""
    before, now = released(older), {entry.id: entry.level for entry in spec_page.read().values()}
    added = {name: level for name, level in now.items() if name not in before}
    levels = {name: level for name, level in now.items() if before.get(name, level) != level}
    return Section(release, added, tuple(name for name in before if name not in now), levels)


def early(section: Section) -> list[str]:
    """New clauses that are MUST, although they have not been a SHOULD in a release before."""
    return [] if section.release in FREE else [name for name, level in section.added.items() if level == "MUST"]


def lines(section: Section) -> str:
    """The clauses of a release as a list."""
    group_of = {entry.id: entry.group for entry in spec_page.read().values()}
    shown = []
    for group in groups():
        for level in ("MUST", "SHOULD"):
            ids = [name for name, given in section.added.items() if given == level and group_of.get(name) == group]
            shown += [_wrapped(f"- New {level} in `{group}` ({len(ids)}): {', '.join(ids)}.")] if ids else []
    for level in ("MUST", "SHOULD"):
        ids = [name for name, given in section.levels.items() if given == level]
        shown += [_wrapped(f"- Now {level}: {', '.join(ids)}.")] if ids else []
    shown += [_wrapped(f"- Removed: {', '.join(section.removed)}.")] if section.removed else []
    return "\n".join(shown)


def _wrapped(line: str) -> str:
    return textwrap.fill(line, 120, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False)


def written(text: str) -> str:
    """The page with the clauses of its newest release."""
    newest, *older = sections(text)
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{lines(expected(newest.release, older))}\n\n{END}{rest.partition(END)[2]}"


def main() -> None:
    """Write the page."""
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
