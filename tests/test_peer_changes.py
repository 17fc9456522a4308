"""`ci/peers --changes`: what fresh reports of the peers tell that the committed ones and the findings do not."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from ci import peer_changes
from tests.support.matrices import a_clause, report_of

PEERS = Path(peer_changes.__file__).with_name("peers")
PAGE = "# A library 1.0: it is wrong\n\nTargets: {}\nClauses: {}\n"


def write(path: Path, target: str, *clauses: tuple[str, str], **about: Any) -> None:
    """Write the report of a target whose clauses of group linear have these statuses."""
    made = [a_clause(name, "linear", status=status) for name, status in clauses]
    most = {"target": f"conformance.targets.{target}", "target_version": "1.0", "lane": None, "verdict": "fail"}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report_of(*made, **(most | about)).to_json()))


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Empty folders of fresh and of committed reports; the second stands beside one of findings."""
    for name in ("fresh", "reports", "findings"):
        (tmp_path / name).mkdir()
    return tmp_path / "fresh", tmp_path / "reports"


def told(folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str], replace: bool = False) -> tuple[int, str]:
    """The exit code, and what is printed."""
    return peer_changes.main(*folders, replace=replace), capsys.readouterr().out


def test_each_changed_status_and_the_profile_are_told(folders: Any, capsys: Any) -> None:
    fresh, kept = folders
    write(kept / "mine" / "1.0.json", "mine", ("LIN-FWD", "pass"), ("LIN-DET", "fail"), profile="quick")
    write(fresh / "mine" / "report.json", "mine", ("LIN-FWD", "fail"), ("LIN-DET", "pass"), ("LIN-NEW", "pass"))
    (kept.parent / "findings" / "a.md").write_text(PAGE.format("mine", "LIN-FWD"))
    code, said = told(folders, capsys)
    assert code == 1
    assert said.splitlines() == [
        "mine 1.0, default: fail",
        "  profile quick → default",
        "  now LIN-DET: fail → pass",
        "  fails LIN-FWD: pass → fail",
        "  clauses that are new: 1, of which 1 pass",
    ]


def test_a_failing_clause_without_a_page_is_told_although_it_failed_before(folders: Any, capsys: Any) -> None:
    fresh, kept = folders
    for path in (kept / "mine-b" / "1.0.json", fresh / "mine-b" / "report.json"):
        write(path, "mine:b", ("LIN-FWD", "fail"), ("LIN-DET", "crashed"))
    page = kept.parent / "findings" / "a.md"
    page.write_text(PAGE.format("mine, mine:b", "LIN-DET"))
    assert told(folders, capsys) == (
        1,
        "mine-b 1.0, default: fail\n  no page in conformance/findings on LIN-FWD\n",
    )
    page.write_text(PAGE.format("mine:b", "LIN-DET, LIN-FWD"))
    assert told(folders, capsys) == (0, "mine-b 1.0, default: fail\n  as before\n")


def test_a_page_on_what_passes_now_and_a_target_that_was_not_judged_are_told(folders: Any, capsys: Any) -> None:
    fresh, kept = folders
    write(kept / "mine" / "1.0.json", "mine", ("LIN-FWD", "fail"))
    write(kept / "other" / "1.0.json", "other", ("LIN-DET", "fail"))
    write(fresh / "mine" / "report.json", "mine", ("LIN-FWD", "pass"))
    (kept.parent / "findings" / "a.md").write_text(PAGE.format("mine, other", "LIN-DET, LIN-FWD"))
    code, said = told(folders, capsys)
    assert code == 0
    assert said.splitlines()[1:] == [
        "  now LIN-FWD: fail → pass",
        "conformance/findings/a.md lists LIN-FWD, which no report of it fails",
        "not judged anew: other",
    ]


def test_without_fresh_reports_it_says_how_to_make_them(folders: Any, capsys: Any) -> None:
    assert peer_changes.main(*folders, replace=False) == 2
    assert f"{folders[0]} has no TARGET/report.json: run `ci/peers DIRECTORY --run`" in capsys.readouterr().err


def test_a_fresh_report_replaces_the_one_of_another_version(folders: Any, capsys: Any, monkeypatch: Any) -> None:
    fresh, kept = folders
    write(kept / "mine" / "1.0.json", "mine", ("LIN-FWD", "pass"))
    write(fresh / "mine" / "report.json", "mine", ("LIN-FWD", "pass"), target_version="1.1")
    made = []
    monkeypatch.setattr(peer_changes, "_make_matrix", made.append)
    code, said = told(folders, capsys, replace=True)
    assert (code, made) == (0, [kept])
    assert "version 1.0 → 1.1" in said
    assert [path.name for path in (kept / "mine").iterdir()] == ["1.1.json"]


def test_the_matrix_is_made_although_a_target_fails(folders: Any) -> None:
    _, kept = folders
    write(kept / "mine" / "1.0.json", "mine", ("LIN-FWD", "fail"))
    peer_changes._make_matrix(kept)
    assert "✗ fail" in (kept / "MATRIX.md").read_text(encoding="utf-8")
    with pytest.raises(subprocess.CalledProcessError):
        peer_changes._make_matrix(kept / "elsewhere")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--changes"], "--changes: expected a directory first, as in: ci/peers DIRECTORY --changes"),
        (["somewhere", "--change"], "--change: expected --run or --changes"),
    ],
)
def test_a_wrong_command_makes_no_environment(arguments: list[str], said: str, tmp_path: Path) -> None:
    done = subprocess.run([PEERS, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (2, said)
    assert not list(tmp_path.iterdir())
