"""conformance/CHANGELOG.md lists every clause of the specification by release, and new demands begin as SHOULD."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from conformance.specification import spec_page
from tests.support import changelog
from tests.support.changelog import Section

PAGE = """\
## 0.3.0
- New MUST in `linear` (1): LIN-NEW.
- New SHOULD in `linear` (1): LIN-MAYBE.
- Now MUST: LIN-OLD,
  LIN-OLDER.
- Removed: LIN-GONE.

## 0.2.0
- New SHOULD in `linear` (3): LIN-OLD,
  LIN-OLDER, LIN-GONE.
"""


def test_the_page_lists_the_clauses_of_the_specification() -> None:
    text = changelog.PAGE.read_text(encoding="utf-8")
    assert text == changelog.written(text), "right? then `python -m tests.support.changelog`"
    now = {entry.id: entry.level for entry in spec_page.read().values()}
    assert changelog.released(changelog.sections(text)) == now


def test_the_newest_release_is_the_packages_version() -> None:
    root = Path(__file__).parent.parent
    version = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert changelog.sections(changelog.PAGE.read_text(encoding="utf-8"))[0].release == version


def test_no_new_clause_is_a_must_at_once() -> None:
    found = changelog.sections(changelog.PAGE.read_text(encoding="utf-8"))
    assert [name for section in found for name in changelog.early(section)] == []


def test_a_new_must_is_seen_where_releases_are_bound() -> None:
    newest, older = changelog.sections(PAGE)
    assert newest == Section(
        "0.3.0", {"LIN-NEW": "MUST", "LIN-MAYBE": "SHOULD"}, ("LIN-GONE",), {"LIN-OLD": "MUST", "LIN-OLDER": "MUST"}
    )
    assert changelog.early(newest) == ["LIN-NEW"]
    assert changelog.early(older) == []
    assert changelog.released([newest, older]) == {
        "LIN-OLD": "MUST",
        "LIN-OLDER": "MUST",
        "LIN-NEW": "MUST",
        "LIN-MAYBE": "SHOULD",
    }


def test_what_follows_from_older_releases_and_the_specification(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [entry for entry in spec_page.read().values() if entry.id in ("LIN-FWD", "LIN-DROP-SEED")]
    monkeypatch.setattr(spec_page, "read", lambda: {entry.id: entry for entry in entries})
    older = [Section("0.1.0", {"LIN-DROP-SEED": "MUST", "LIN-GONE": "MUST"}, (), {})]
    found = changelog.expected("0.2.0", older)
    assert found == Section("0.2.0", {"LIN-FWD": "MUST"}, ("LIN-GONE",), {"LIN-DROP-SEED": "SHOULD"})
    assert changelog.lines(found) == (
        "- New MUST in `linear` (1): LIN-FWD.\n- Now SHOULD: LIN-DROP-SEED.\n- Removed: LIN-GONE."
    )
