"""Mutants are judged in stages: what is left for later is not scored, and only tests that can fail are asked."""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.process
import subprocess
import sys
from pathlib import Path

import pytest

from tests.campaigns.mutation import mutants, summary
from tests.campaigns.mutation.reached_tests import _Contexts, _digest_of
from tests.support import preloaded_process


def test_what_is_decided_beyond_the_first_undecided_mutant_is_told_but_not_scored() -> None:
    first = {"status": "killed", "clause": "LIN-FWD", "stage": "first"}
    entries = [
        {"mutant": "c", **first},
        {"mutant": "b", "status": "undecided", "stage": "first"},
        {"mutant": "a", **first},
        {"mutant": "d", "status": "survived"},
    ]
    places = {"a": 0.1, "b": 0.2, "c": 0.3, "d": 0.4}
    assert [entry["mutant"] for entry in summary.scored(entries, places)] == ["a", "d"]
    assert summary.tally(entries) == {"mutants": 4, "killed": 2, "undecided": 1, "survived": 1}
    decided = [entries[0], *entries[2:]]
    assert summary.scored(decided, places) == decided


def test_an_undecided_mutant_goes_on_where_its_journal_says(tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    name = "reference/linear.py low_rank_update arithmetic"
    asked = ("-m", "tests.campaigns.mutation", "run", "--again", "all", "--only", name, "--journal", str(journal))
    wanted = [m.id for m in mutants.all_mutants(named=name) if name in m.id]
    passed = {"file": "reference/linear.py", "operator": "arithmetic", "seconds": 0.0, "stage": "first"}
    journal.write_text("".join(json.dumps({"mutant": m, "status": "undecided", **passed}) + "\n" for m in wanted))
    for until, more in (("first", 0), ("quick", len(wanted)), ("tests", 0)):
        before = len(journal.read_text().splitlines())
        ended = preloaded_process.command("python", (*asked, "--until", until), mutants.ROOT, 600)
        assert ended.returncode == 0, ended.stderr
        assert len(journal.read_text().splitlines()) == before + more, until
    assert {entry["status"] for entry in summary.read([journal])} == {"killed"}


MEASURES = """
import json, sys
from pathlib import Path
from tests.campaigns.mutation import mutants, own_tests, verdict
from tests.campaigns.mutation.reached_tests import ReachedTests

verdict.prepare()
own_tests.tests_of = lambda file: ("tests/test_keys.py",)
reached = ReachedTests(Path(sys.argv[1]))
found = {m.function: reached.of(m) for m in mutants.mutants_of(mutants.ROOT / "reference/encrypted/keys.py")}
print(json.dumps({function: [test.rpartition("::")[2] for test in tests] for function, tests in found.items()}))
"""


def test_a_mutant_is_asked_of_the_tests_that_run_its_line_or_another_process(tmp_path: Path) -> None:
    called = [sys.executable, "-W", "ignore", "-c", MEASURES, str(tmp_path)]
    ended = subprocess.run(called, cwd=mutants.ROOT, check=True, capture_output=True, text=True, timeout=600)
    found = json.loads(ended.stdout.splitlines()[-1])
    elsewhere = [
        "test_a_forked_process_gets_an_error_that_recommends_spawn",
        "test_the_first_use_fixes_the_number_of_threads",
    ]
    assert all(set(elsewhere) <= set(tests) for tests in found.values())
    assert found["Keys.__copy__"] == ["test_keys_refuse_pickling_and_copies_are_the_same_object", *elsewhere]


def test_tests_are_measured_again_when_what_they_share_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mutants, "ROOT", tmp_path)
    (tmp_path / "tests" / "support").mkdir(parents=True)
    (tmp_path / "tests" / "test_x.py").write_text("one")
    shared = tmp_path / "tests" / "support" / "shared.py"
    found = set()
    for text in ("one", "two", "one"):
        shared.write_text(text)
        found.add(_digest_of("tests/test_x.py"))
    assert len(found) == 2


def test_a_test_that_starts_a_process_in_any_way_counts_as_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(_: object) -> None:
        """As a spawned process does, raise no event."""

    monkeypatch.setattr(multiprocessing.process.BaseProcess, "start", started)
    contexts = _Contexts("tests/test_x.py", lambda _: None)
    with contexts.listening():
        multiprocessing.Process(target=int).start()
    assert contexts.elsewhere == {"tests/test_x.py"}
    assert multiprocessing.process.BaseProcess.start is started
