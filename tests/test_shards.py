"""Shards and resuming: the parts of a run give the whole report, and mismatched or missing parts are refused."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from conformance import cli
from conformance.errors import UsageError
from conformance.judgement.result import Result
from conformance.report.outcome import Outcome
from conformance.report.plan import Plan, PlannedGroup
from conformance.report.report import SuiteFailure
from conformance.report.verdict import exit_code
from conformance.run.journal import NAME, Journal, read
from conformance.run.selection import Selection
from conformance.run.shard_merge import merge_shards
from conformance.run.shards import part
from conformance.target.fingerprint import fingerprint
from tests.test_report import SCHEMA, a_plan


def many(count: int = 40) -> Plan:
    """A plan of many clauses of different costs."""
    plan = a_plan()
    model, *others = plan.clauses
    for number in range(count):
        name, cases = f"A-{number}", 1 + 7 * number % 24
        trials = (replace(trial, key=trial.key._replace(clause=name), cases=cases) for trial in model.trials)
        others.append(replace(model, id=name, trials=tuple(trials)))
    return replace(plan, clauses=tuple(others))


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shards_are_a_balanced_partition_in_any_order_of_clauses(count: int) -> None:
    plan = many()
    backwards = replace(plan, clauses=plan.clauses[::-1])
    parts = [part(plan, f"{number}/{count}") for number in range(1, count + 1)]
    dealt = [set(each.keys) for each in parts]
    assert sum(map(len, dealt)) == len(plan.keys)
    assert set.union(*dealt) == set(plan.keys)
    assert dealt == [set(part(backwards, f"{number}/{count}").keys) for number in range(1, count + 1)]
    loads = [sum(trial.cases for trial in each.trials) for each in parts]
    assert max(loads) - min(loads) <= 3  # the costliest trial is 24
    assert len({dtype for _, _, dtype in dealt[0]}) == 2  # of every dtype some


def test_a_shard_lists_its_own_clauses_and_the_unclaimed_ones() -> None:
    plan = a_plan(A="issue 7")
    model, *others = plan.clauses
    (trial, _) = model.trials
    more = replace(model, id="D", group="merge", trials=(replace(trial, key=trial.key._replace(clause="D")),))
    groups = {**plan.groups, "merge": PlannedGroup(claimed=True)}
    plan = replace(plan, groups=groups, clauses=(model, *others, more))
    parts = [part(plan, f"{number}/5") for number in range(1, 6)]
    for each in parts:
        assert len(each.keys) == 1
        (clause, _, _), *_ = each.keys
        assert {found.id for found in each.clauses} == {clause, "C"}
        assert set(each.groups) == {"layer", "merge" if clause == "D" else "linear"}
        assert set(each.deviations) == ({"A"} if clause == "A" else set())
    with pytest.raises(UsageError, match="shard 6/6 is empty: 5 trials are planned"):
        part(plan, "6/6")


@pytest.mark.parametrize("shard", ["", "2", "0/3", "4/3", "1/0", "a/b", "-1/2", "1/2/3", "1.0/2"])
def test_an_invalid_shard_is_refused(shard: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "right", f"--shard={shard}"]) == 2
    assert f"shard {shard!r} is not valid: expected i/n" in capsys.readouterr().err


def judged_part(folder: Path, shard: str | None = None, **changes: Any) -> Path:
    """A report folder with the journal of a finished run of `a_plan`, or of one shard; B fails in float32."""
    plan = a_plan()
    target = replace(plan.target, **changes.pop("target", {}))
    versions = {**plan.versions, **changes.pop("versions", {})}
    name = changes.pop("device_name", plan.device_name)
    plan = replace(plan, target=target, versions=versions, device_name=name)
    outcome = Outcome(errors=changes.pop("errors", []))
    selection = Selection("t", shard=shard, **changes)
    for key in part(plan, shard).keys:
        failing = key == ("B", "f", "float32")
        outcome.add(Result(*key, status="fail" if failing else "pass", examples=6), "a script" if failing else None)
    folder.mkdir()
    Journal.begin(folder, selection, plan).record(outcome)
    return folder


def cut(folder: Path, lines: int, more: str = "") -> Path:
    """Keep only the first lines of a journal, followed by `more`."""
    journal = folder / NAME
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:lines]) + more)
    return folder


def test_merged_shards_give_the_whole_report(tmp_path: Path) -> None:
    shards = [
        judged_part(tmp_path / str(number), f"{number}/3", device_name=f"cpu {number % 2}") for number in (3, 1, 2)
    ]
    (tmp_path / "all").mkdir()
    found = merge_shards(shards, tmp_path / "all")
    jsonschema.validate(found.to_json(), SCHEMA)
    assert found.shard is None
    assert found.device_name == "cpu 1 and cpu 0"
    assert {clause.id: clause.status for clause in found.clauses} == {"A": "pass", "B": "fail", "C": "not_claimed"}
    assert (tmp_path / "all" / "repro_B.py").read_text() == "a script"
    again = read(tmp_path / "all")
    assert again is not None
    assert again.left == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seed": 1}, "seed: 0 in '{0}', 1 in '{1}'"),
        ({"profile": "quick"}, "profile: default in '{0}', quick in '{1}'"),
        ({"lane": "cpu"}, "lane: None in '{0}', cpu in '{1}'"),
        ({"device": "cuda"}, "device: cpu in '{0}', cuda in '{1}'"),
        ({"dtypes": ("float32",)}, "dtype: all in '{0}', float32 in '{1}'"),
        ({"versions": {"torch": "1"}}, "version of torch: 2 in '{0}', 1 in '{1}'"),
        ({"target": {"spec": "u"}}, "target: t in '{0}', u in '{1}'"),
        ({"target": {"version": "2"}}, "version of the target: None in '{0}', 2 in '{1}'"),
        ({"target": {"fingerprint": "1"}}, "source of the target: 0 in '{0}', 1 in '{1}'"),
    ],
)
def test_shards_of_different_runs_are_refused(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    folders = [judged_part(tmp_path / "a", "1/2"), judged_part(tmp_path / "b", "2/2", **changes)]
    with pytest.raises(UsageError) as refusal:
        merge_shards(folders, tmp_path)
    assert says.format(*folders) in str(refusal.value)
    recorded = read(folders[1])
    assert recorded is not None
    now = replace(recorded.selection, shard="1/2")
    with pytest.raises(UsageError) as refusal:
        Journal.resume(folders[0], now, recorded.plan)
    assert says.replace("'{0}'", "the journal").replace("in '{1}'", "now") in str(refusal.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_missing_overlapping_or_unfinished_shards_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two, four = (judged_part(tmp_path / f"{n}of4", f"{n}/4") for n in (1, 2, 4))
    again = judged_part(tmp_path / "again", "2/4")
    half = judged_part(tmp_path / "half", "1/2")
    whole = judged_part(tmp_path / "whole")
    three = cut(judged_part(tmp_path / "3of4", "3/4"), 1)
    (tmp_path / "empty").mkdir()
    for folders, says in (
        ([one, four], "of 4 shards, these are missing: 2/4, 3/4"),
        ([one, two, again], f"'{two}' and '{again}' overlap: both are shard 2/4"),
        ([one, half], f"of different runs: of 4 in '{one}' and of 2 in '{half}'"),
        ([one, whole], f"'{whole}' holds a whole run"),
        ([one, tmp_path / "empty"], "'" + str(tmp_path / "empty") + "' is no report folder of a shard"),
        ([one, two, three, four], f"shard 3/4 in '{three}': 1 trials, "),
    ):
        assert cli.main(["merge", *map(str, folders), "--report-dir", str(tmp_path / "all")]) == 2
        out, err = capsys.readouterr()
        assert (says in err, out) == (True, ""), err
    assert cli.main(["merge", str(one), "--report-dir", str(one)]) == 2
    assert "is a shard's own folder" in capsys.readouterr().err
    assert list((tmp_path / "all").iterdir()) == []


def test_a_failure_of_the_suite_in_one_shard_is_that_of_the_whole(tmp_path: Path) -> None:
    errors = [SuiteFailure("A", "Traceback …")]
    broken = cut(
        judged_part(tmp_path / "b", "2/2", errors=errors), 1, json.dumps({"error": "Traceback …", "where": "A"}) + "\n"
    )
    found = merge_shards([judged_part(tmp_path / "a", "1/2"), broken], tmp_path)
    assert exit_code(found) == 3
    assert "inconclusive" in {clause.status for clause in found.clauses}


def test_resuming_keeps_every_readable_result(tmp_path: Path) -> None:
    whole = judged_part(tmp_path / "whole")
    lines = (whole / NAME).read_text().splitlines(keepends=True)
    for more in ("", lines[3][:40], lines[3].strip(), "\0\0\0\n" + lines[3], "[1]\n"):
        cut(whole, 3, more)
        journal = Journal.resume(whole, Selection("t"), a_plan())
        assert len(journal.recorded.outcome.results) == 2
        assert len(journal.recorded.left) == 2
        assert (whole / NAME).read_text().splitlines(keepends=True)[:3] == lines[:3]
        assert json.loads((whole / NAME).read_text().splitlines()[3]) == {"resumed": "a processor"}
    with pytest.raises(UsageError, match="shard: None in the journal, 1/2 now"):
        Journal.resume(whole, Selection("t", shard="1/2"), a_plan())
    with pytest.raises(
        UsageError, match="deviations: none in the journal, A now\n  exclude: none in the journal, B now"
    ):
        Journal.resume(whole, Selection("t", excluded=("B",)), a_plan(A="issue 1"))


def test_a_failure_of_the_suite_is_kept_only_where_nothing_is_left_to_run(tmp_path: Path) -> None:
    whole = judged_part(tmp_path / "whole", errors=[SuiteFailure("pytest", "Traceback …")])
    assert Journal.resume(whole, Selection("t"), a_plan()).recorded.outcome.errors == [
        SuiteFailure("pytest", "Traceback …")
    ]
    cut(whole, 3, json.dumps({"error": "Traceback …", "where": "A"}) + "\n")
    assert Journal.resume(whole, Selection("t"), a_plan()).recorded.outcome.errors == []
    recorded = read(whole)
    assert recorded is not None
    assert recorded.outcome.errors == []


def test_the_fingerprint_covers_the_targets_own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "printed.py").write_text("import printed_too\n")
        (folder / "printed_too.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path / "one")
    importlib.import_module("printed")
    try:
        first = fingerprint("printed:some.attribute")
        (tmp_path / "one" / "printed_too.py").write_text("# other\n")
        assert fingerprint("printed") != first
        for name in ("printed", "printed_too"):
            monkeypatch.setattr(sys.modules[name], "__file__", str(tmp_path / "two" / f"{name}.py"))
        assert fingerprint("printed") == first
        assert fingerprint("sys") == ""
    finally:
        del sys.modules["printed"], sys.modules["printed_too"]
