"""Former ids of clauses: commands and files that name one judge the clause that has taken it over."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from conformance.cases.case import Case, Space
from conformance.errors import UsageError
from conformance.run import rerun_case
from conformance.run.selection import Selection
from conformance.specification import clause as clauses
from conformance.specification import spec_page
from conformance.specification.clause import clause
from conformance.target import deviations
from conformance.target.target import Target
from tests import known_bad
from tests.support.commands import loraspec

OLD, HOLDER = "MRG-COPY", "LIFE-LAYER-FWD"


def test_a_selection_takes_a_former_id_for_its_holder() -> None:
    selection = Selection("reference", clauses=(OLD, HOLDER, "LAY-FWD"), excluded=("MRG-TO",))
    assert selection.clauses == (HOLDER, "LAY-FWD")
    assert selection.excluded == ("LIFE-LAYER-STATE",)
    assert Selection("reference", clauses=("MRG-*",)).clauses == ("MRG-*",)


def test_expected_failures_of_former_ids_are_those_of_the_holder(tmp_path: Path) -> None:
    path = tmp_path / "known.toml"
    path.write_text(f'{OLD} = "copies"\nLAY-USED-TO = "dtypes"\nLAY-FWD = "y"\n')
    assert deviations.read(path) == {HOLDER: "copies; dtypes", "LAY-FWD": "y"}
    target = Target.of(SimpleNamespace(CONFORMANCE={"deviations": {OLD: "copies"}}))
    assert target.deviations == {HOLDER: "copies"}


def test_explain_and_run_name_the_holder(tmp_path: Path) -> None:
    done = loraspec("explain", OLD)
    assert done.stdout.startswith(f"{OLD} is part of {HOLDER}\n{HOLDER} (MUST, group life)"), done.stdout
    where = ("--dtype", "float32", "--lane", "cpu", "--profile", "quick", "-n", "0", "--report-dir", str(tmp_path))
    done = loraspec("run", "reference", "--clause", OLD, *where)
    assert f"{OLD} is part of {HOLDER}" in done.stdout, done.stdout + done.stderr
    assert "PASS reference: 1 clauses pass" in done.stdout, done.stdout


def test_a_case_of_a_former_id_cannot_be_judged_again() -> None:
    line = rerun_case.parse(f"{OLD} optimized LinearLoRA m=2 k=3")
    with pytest.raises(UsageError, match=rf"{OLD} is part of {HOLDER}.*run optimized --clause {HOLDER}"):
        rerun_case.check(line)


def test_the_page_lists_former_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clauses, "REGISTRY", {})
    monkeypatch.setattr(clauses, "FORMER", {})
    clause("LAY-NEW", sentence="It holds.", cases=Space(Case), aliases=("LAY-OLD", "MRG-OLD"))(lambda *_: None)
    page = spec_page.document(clauses.REGISTRY.values())
    assert "- LAY-OLD is part of LAY-NEW\n- MRG-OLD is part of LAY-NEW\n" in page
    assert spec_page.read(page) == {"LAY-NEW": spec_page.entry_of(clauses.REGISTRY["LAY-NEW"])}
    for names, taken in ((("LAY-OLD",), ()), (("LAY-MORE",), ("LAY-OLD",)), (("LAY-MORE",), ("LAY-NEW",))):
        with pytest.raises(ValueError, match="which LAY-NEW has or had"):
            clause(*names, sentence="It holds.", cases=Space(Case), aliases=taken)(lambda *_: None)


def test_a_twin_of_a_former_id_is_one_of_the_holder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_bad, "REGISTRY", {})
    monkeypatch.setattr(known_bad, "FORMER", {OLD: HOLDER})
    known_bad.record("Defect", object(), OLD, says="y")
    (twin,) = known_bad.REGISTRY.values()
    assert (twin.name, twin.clause, twin.groups) == (f"{HOLDER}__Defect", HOLDER, ("life",))
