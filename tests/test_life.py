"""Lives of a layer: the covering walk, cases as text, shrinking, what a target lacks, and the message."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reference
from conformance.cases.case import shrink
from conformance.clauses.life import life_case
from conformance.clauses.life.covering_walk import Walk, possible
from conformance.clauses.life.layer import LIVES, OPERATIONS, SIZES, START
from conformance.clauses.life.layer_judgement import judge_output
from conformance.clauses.life.layer_life import Life
from conformance.clauses.life.life_case import CYCLE, CYCLED, CYCLES, INTERPRETED, LENGTH, LifeCase, LifeSpace
from conformance.clauses.life.situation import Operation, Situation
from conformance.judgement.outcomes import Violation
from conformance.judgement.result import Result
from conformance.numerics.dtypes import FLOAT_DTYPES
from conformance.report import met_runs
from conformance.report.report import ReportedClause, ReportedResult
from conformance.reproducer.reproducer import script
from conformance.run.case_search import Examination
from conformance.run.profiles import PROFILES
from conformance.specification.clause import REGISTRY, load_all
from conformance.target.target import Target
from tests.baselines.life import LivedLayer
from tests.known_bad.life.copies_and_files import CopiesLoseTheirHooks
from tests.known_bad.life.kept_weights import KeepsTheAdaptedWeightForGood
from tests.support.commands import loraspec

FWD = REGISTRY["LIFE-LAYER-FWD"]


def test_the_default_profile_meets_every_pair_in_each_dtype() -> None:
    pairs = {name: one.cases for name, one in load_all(("life",)).items() if getattr(one.cases, "strength", 0) == 2}
    assert {"LIFE-LAYER-FWD", "LIFE-LAYER-PACKED", "LIFE-RUN-REPEAT"} <= set(pairs)
    for name, lives in pairs.items():
        count = PROFILES["default"].cases(REGISTRY[name], "cpu")
        for dtype in REGISTRY[name].dtypes:
            cases = [lives.draw(0, name, i, dtype=dtype) for i in range(count)]
            met = {pair for case in cases for pair in pairwise(case.operations[len(lives.first) :])}
            assert met == possible(lives.operations, lives._begun(), 2), name


def test_a_life_with_interpreted_kernels_is_short() -> None:
    case = LIVES.draw(0, FWD.id, 5)
    assert case.cut_for("cpu") is case
    assert case.cut_for("interpreter").operations == case.operations[:INTERPRETED]
    cycled = LIVES.draw(0, FWD.id, CYCLED).cut_for("interpreter")
    assert cycled.operations == (CYCLE * 2)[:INTERPRETED]


def test_the_quick_profile_meets_every_pair_in_some_dtype() -> None:
    count = PROFILES["quick"].cases(FWD, "cpu")
    cases = [LIVES.draw(0, FWD.id, i, dtype=dtype) for dtype in FLOAT_DTYPES for i in range(count)]
    met = {pair for case in cases for pair in pairwise(case.operations)}
    assert possible(OPERATIONS, START, 2) == met


def test_every_operation_of_a_drawn_life_may_come_where_it_stands() -> None:
    for seed, index in ((0, 3), (0, 120), (7, 0)):
        case = LIVES.draw(seed, FWD.id, index, dtype="float32")
        assert LIVES.repaired(case.operations) == case.operations
        assert 0 < len(case.operations) <= LENGTH


def test_a_walk_of_triples_meets_all_of_a_small_set() -> None:
    names = ("merge", "unmerge", "forward", "backward", "autocast", "leave")
    few = {name: OPERATIONS[name] for name in names}
    lives = Walk(few, Situation(), 3, 8).lives()
    runs = Counter(life[i : i + 3] for life in lives for i in range(len(life) - 2))
    assert set(runs) == possible(few, Situation(), 3)
    assert ("merge", "unmerge", "merge") in runs
    assert not any(run[:2] == ("backward", "backward") for run in runs)  # one forward pass has one backward pass


def test_a_case_is_read_back_from_its_text() -> None:
    case = LIVES.draw(0, FWD.id, 5, dtype="bfloat16")
    assert LifeCase.parse(str(case)) == dataclasses.replace(case)
    with pytest.raises(ValueError, match=r"life has the unknown operation 'merg': did you mean merge or unmerge"):
        LifeCase.parse("k=3 n=3 r=2 life=forward+merg")


def test_a_failing_life_is_shrunk_to_the_operations_that_matter() -> None:
    target = Target.of(SimpleNamespace(LinearLoRA=CopiesLoseTheirHooks))
    (subject,) = target.subjects(FWD)
    result = Examination(FWD, subject, "float32", PROFILES["quick"]).run()
    assert "life=hook+deepcopy" in (result.case or ""), result.case
    assert len(LifeCase.parse(result.found or "").operations) > 2
    assert "y after deepcopy" in (result.message or "")
    assert "lived    hook, deepcopy" in (result.message or "")


def test_operations_that_a_target_lacks_are_left_out_and_not_counted() -> None:
    class Plain(nn.Module):  # in a function, so that it cannot be pickled
        def __init__(self, base: nn.Linear, r: int, lora_alpha: float) -> None:
            super().__init__()
            self.base_layer = base.requires_grad_(False)
            like = {"dtype": base.weight.dtype, "bias": False}
            self.lora_A = nn.Linear(base.in_features, r, **like)  # type: ignore[arg-type]
            self.lora_B = nn.Linear(r, base.out_features, **like)  # type: ignore[arg-type]
            self.scaling = lora_alpha / r

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.base_layer(x) + self.lora_B(self.lora_A(x)) * self.scaling
            return y

    target = Target.of(SimpleNamespace(LinearLoRA=Plain))
    (subject,) = target.subjects(FWD)
    assert LIVES.lacking(subject) == {"merge", "unmerge", "pickle", "init", "scale", "replace-weight", "parametrise"}
    profile = dataclasses.replace(PROFILES["quick"], volume=1)
    result = Examination(FWD, subject, "float32", profile).run()
    assert result.status == "pass", result.message
    fewer = possible({n: o for n, o in OPERATIONS.items() if n not in LIVES.lacking(subject)}, START, 2)
    assert (result.message or "").endswith(f" of {len(fewer)} pairs of operations met")
    assert int(result.met or "", 16).bit_count() == int((result.message or "").split()[0])


def test_the_trials_of_a_group_are_counted_together_in_one_line() -> None:
    def clause(name: str, *results: tuple[str, str, str]) -> ReportedClause:
        found = tuple(
            ReportedResult(
                subject=subject,
                dtype="float32",
                device="cpu",
                lane="cpu",
                status="pass",
                worst_ratio=None,
                examples=3,
                message=message,
                met=met,
            )
            for subject, message, met in results
        )
        blank: dict[str, Any] = {"level": "MUST", "worst_ratio": None, "examples": 3, "inconclusive": 0, "case": None}
        return ReportedClause(
            id=name, group="life", status="pass", message=met_runs.together(found), results=found, **blank
        )

    pairs = "2 of 6 pairs of operations met"
    first = clause("LIFE-A", ("L", pairs, "3"), ("M", pairs, "6"))
    second = clause("LIFE-B", ("L", "1 of 6 pairs of operations met", "20"))
    other = clause("LIFE-C", ("L", "1 of 4 operations met", "8"))
    assert (first.message, other.message) == ("3 of 6 pairs of operations met", "1 of 4 operations met")
    report = SimpleNamespace(clauses=(first, second, other))
    line = "life: pairs of operations met 4 of 6; operations met 1 of 4 in LIFE-C"
    assert met_runs.lines(report) == [line]  # type: ignore[arg-type]
    assert met_runs.lines(SimpleNamespace(clauses=())) == []  # type: ignore[arg-type]


def test_a_run_prints_one_line_for_its_lives_and_a_verbose_one_each_trial(tmp_path: Path) -> None:
    line = ("run", "reference", "--clause", "LIFE-LAYER-MERGED", "--dtype", "float32", "--profile", "quick", "-q")
    folder = ("--report-dir", str(tmp_path))
    short, long = loraspec(*line, *folder).stdout, loraspec(*line, *folder, "-v").stdout
    assert "life: pairs of operations met 69 of 193\n" in short
    assert "NOTE" not in short
    assert "NOTE LinearLoRA float32, 69 of 193 pairs of operations met: LIFE-LAYER-MERGED" in long
    clause = json.loads((tmp_path / "report.json").read_text())["clauses"][0]
    assert clause["message"] == clause["results"][0]["message"] == "69 of 193 pairs of operations met"


def test_a_parametrised_weight_is_used_by_every_layer() -> None:
    """`optimized` looks its Parameters up directly, and found none under that name."""
    import optimized

    case = LifeCase(k=3, n=4, r=2, bias=True, life="parametrise+deparametrise+fill-weight")
    for library in (reference, optimized):
        (subject, *_) = Target.of(library, library.__name__).subjects(FWD)
        FWD.check(subject, case)


class Halve(Operation):
    name = "halve"

    def fits(self, now: Situation) -> bool:
        return not now.merged and not now.regions

    def act(self, life: Any) -> None:
        life.run("with torch.no_grad():\n    lora_B.mul_(0.5)")
        life.truth.values["lora_B"] = life.truth.values["lora_B"] / 2


def test_a_further_operation_meets_all_others_and_is_judged() -> None:
    operations = {**OPERATIONS, "halve": Halve()}
    every = possible(operations, START, 2)
    assert {("halve", name) for name in ("halve", "merge", "deepcopy", "autocast")} <= every
    assert ("merge", "halve") not in every
    (subject,) = Target.of(SimpleNamespace(LinearLoRA=KeepsTheAdaptedWeightForGood)).subjects(FWD)
    case = LifeCase(k=3, n=4, r=2, life="no-grad+fill-A")
    with pytest.raises(Violation, match="y after fill-A"):
        Life(subject, case, START).live(OPERATIONS, judge_output)
    (right,) = Target.of(SimpleNamespace(LinearLoRA=LivedLayer)).subjects(FWD)
    life = Life(right, dataclasses.replace(case, life=""), START)
    for operation in (operations["merge"], operations["halve"], operations["unmerge"], operations["halve"]):
        life.act(operation)
    judge_output(life)
    assert life.past == ["merge", "unmerge", "halve"]  # nothing halves a merged adapter


def test_the_script_of_a_life_has_its_calls_and_needs_no_suite(tmp_path: Path) -> None:
    (tmp_path / "copying.py").write_text(COPYING)
    case = "k=3 n=3 r=2 life=scale+deepcopy"
    sys.path.insert(0, str(tmp_path))
    try:
        (subject,) = Target.load("copying").subjects(FWD)
        result = Result(FWD.id, subject.name, "float32", case=case, status="fail", message="y is wrong")
        text = script(FWD, subject, "copying", result)
    finally:
        sys.path.remove(str(tmp_path))
    assert "import conformance" not in text
    assert "    # scale\n    layer.scale = " in text
    assert "layer = copy.deepcopy(layer)" in text
    assert len(text.splitlines()) < 120
    (tmp_path / "script.py").write_text(text)
    ran = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 1, ran.stderr
    assert "y after deepcopy[" in ran.stdout


COPYING = """
import copy
import reference
from conformance.cases.case import shrink
from conformance.clauses.life import life_case


class LinearLoRA(reference.LinearLoRA):
    def __deepcopy__(self, memo):
        made = copy.copy(self)
        made.__dict__ = copy.deepcopy(self.__dict__, memo)
        made.scale = self.alpha / self.dim
        return made
"""


def test_a_life_may_be_lived_many_times_and_shrinks_to_fewer() -> None:
    class WearsOut(LivedLayer):
        """A layer whose seventh merge adds nothing."""

        merges = 0

        def merge(self) -> None:
            self.merges += not self.merged
            super().merge()
            if self.merges >= 7 and self.unmerged_weight is not None:
                with torch.no_grad():
                    self.weight.copy_(self.unmerged_weight)

    case = LIVES.draw(0, FWD.id, CYCLED, dtype="float32")
    assert case.operations == CYCLE * CYCLES == LifeCase.parse(str(case)).operations
    assert LIVES.draw(0, FWD.id, CYCLED - 1, dtype="float32").operations != case.operations
    (subject,) = Target.of(SimpleNamespace(LinearLoRA=WearsOut)).subjects(FWD)

    def fails(smaller: LifeCase) -> bool:
        try:
            FWD.check(subject, smaller)
        except Violation:
            return True
        return False

    smallest = shrink(LIVES, dataclasses.replace(case, life=f"24*{'+'.join(CYCLE)}"), fails, 40)
    assert smallest.life == "7*merge+unmerge+fill-A+fill-B"
    with pytest.raises(ValueError, match="life has 'x' in place of a number of times"):
        LifeCase.parse("k=3 n=3 r=2 life='x*merge'")


def test_a_run_that_draws_lives_for_triples_counts_triples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(life_case, "NIGHTLY", 1)
    names = ("eval", "train", "forward")
    few = LifeSpace({name: OPERATIONS[name] for name in names}, START, lambda _: set(), **SIZES)
    lives = [LifeCase(life=life) for life in ("eval+train+forward", "train+forward+eval+eval")]
    assert few.coverage(lives[:1], None)[0] == "2 of 9 pairs of operations met"
    assert few.coverage(lives, None)[0] == "3 of 27 triples of operations met"


def test_a_message_names_the_last_operations_of_a_long_life() -> None:
    (subject, *_) = Target.of(reference, "reference").subjects(FWD)
    life = Life(subject, LifeCase(k=3, n=4, r=2), START)
    life.past = ["eval"] * 50 + ["train"]
    lived_through = str(life.told(Violation("wrong"))).splitlines()[1]
    assert lived_through.startswith("lived    11 operations, then eval, ")
    assert lived_through.endswith("eval, train")


def test_a_layer_that_draws_its_adapter_anew_may_merge_the_new_one() -> None:
    """init_lora_weights unmerges the reference's layer, so that a further merge merges the adapter of that time."""
    clause = load_all(("life",))["LIFE-LAYER-MERGED"]
    (subject,) = Target.of(SimpleNamespace(LinearLoRA=LivedLayer)).subjects(clause)
    for life in ("merge+init+merge+fill-B", "merge+init+merge+fill-B+merge+scale+unmerge"):
        assert clause.check(subject, LifeCase(k=3, n=4, r=2, life=life)) is not None
