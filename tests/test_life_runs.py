"""Lives of a training run: the covering walks, what a target lacks, shrinking, the message, the script, the truth."""

from __future__ import annotations

import copy
import dataclasses
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import reference
from conformance.clauses.life.covering_walk import possible
from conformance.clauses.life.run import BEGUN, RUN, RUNS
from conformance.clauses.life.run_judgement import judge_state
from conformance.clauses.life.run_life import RunLife
from conformance.clauses.life.run_repeated import REPEATED
from conformance.clauses.life.run_situation import RunCase, RunOperation
from conformance.judgement.outcomes import Inconclusive, Violation
from conformance.judgement.result import Result
from conformance.reproducer.reproducer import script
from conformance.run.case_search import Examination
from conformance.run.profiles import PROFILES
from conformance.specification.clause import REGISTRY
from conformance.target.target import Target
from tests.baselines.life_run import LivedRun
from tests.known_bad.life.run_repeated import LeavesTheRandomStateOfAFailedCall
from tests.known_bad.life.saved_runs import DropsTheWindowWhenItResumes

STATE, LOSS, REPEAT = (REGISTRY[f"LIFE-RUN-{name}"] for name in ("STATE", "LOSS", "REPEAT"))
CASE = RunCase(k=2, n=2, r=1, dtype="float64")


@pytest.mark.parametrize(("clause", "profile"), [(STATE, "quick"), (REPEAT, "default"), (LOSS, "default")])
def test_a_profile_meets_every_pair(clause, profile) -> None:  # type: ignore[no-untyped-def]
    space, count = clause.cases, PROFILES[profile].cases(clause, "cpu")
    cases = [space.draw(0, clause.id, i, dtype=clause.dtypes[0]) for i in range(count)]
    assert possible(space.operations, BEGUN, 2) == {pair for case in cases for pair in pairwise(case.operations)}


def test_a_saved_run_is_resumed_only_after_it_was_saved() -> None:
    pairs = possible(RUN, BEGUN, 2)
    assert ("save", "resume") in pairs
    assert RUNS.repaired(["resume", "mode-torch", "save", "optimiser", "rewind"]) == ("save", "optimiser")
    assert ("split", "split") not in pairs


def test_a_case_is_read_back_from_its_text() -> None:
    case = RUNS.draw(0, STATE.id, 3, dtype="float64")
    assert RunCase.parse(str(case)) == case
    with pytest.raises(ValueError, match="life has the unknown operation 'rezume': did you mean resume"):
        RunCase.parse("life=save+rezume")


def test_a_failing_life_is_shrunk_to_the_operations_that_matter() -> None:
    (subject,) = Target.of(DropsTheWindowWhenItResumes()).subjects(STATE)
    result = Examination(STATE, subject, "float64", PROFILES["quick"]).run()
    assert "life=accumulate+save+resume" in (result.case or ""), result.case
    assert "after resume" in (result.message or "")
    assert "lived    accumulate, save, resume" in (result.message or "")


def test_operations_that_a_target_lacks_are_left_out_and_not_counted() -> None:
    (subject,) = Target.of(SimpleNamespace(LoraTraining=reference.LoraTraining)).subjects(STATE)
    modes = {"split", "mode-torch", "mode-disable", "mode-simulate"}
    assert RUNS.lacking(subject) == {"save", "resume", "rewind", "restart", *modes}
    profile = dataclasses.replace(PROFILES["quick"], volume=1)
    result = Examination(STATE, subject, "float64", profile).run()
    assert result.status == "pass", result.message
    fewer = possible({n: o for n, o in RUN.items() if n not in RUNS.lacking(subject)}, BEGUN, 2)
    assert (result.message or "").endswith(f" of {len(fewer)} pairs of operations met")


class Halve(RunOperation):
    name = "halve"

    def act(self, life: RunLife) -> None:  # type: ignore[override]
        life.run("with torch.no_grad():\n    net.outer.lora_B.weight.mul_(0.5)")
        life.truth.values["outer.lora_B"] = life.truth.values["outer.lora_B"] / 2


def test_a_further_operation_is_judged() -> None:
    operations = {**RUN, "halve": Halve()}
    assert ("halve", "deepcopy") in possible(operations, BEGUN, 2)
    (subject,) = Target.of(LivedRun()).subjects(STATE)
    case = dataclasses.replace(CASE, life="halve+step+halve")
    RunLife(subject, case, BEGUN).live(operations, judge_state)
    Halve.act = lambda _, life: life.run("net.outer.lora_B.weight.data.mul_(0.5)")  # type: ignore[method-assign]
    with pytest.raises(Violation, match=r"lora_\w after halve"):
        RunLife(subject, case, BEGUN).live(operations, judge_state)


def test_the_truth_is_that_of_pytorch() -> None:
    """A few windows of every optimiser, against torch's own optimisers and autograd."""
    (subject,) = Target.of(LivedRun()).subjects(STATE)
    for optimizer in ("sgd", "momentum", "adam", "adamw"):
        life = RunLife(subject, dataclasses.replace(CASE, optimizer=optimizer, groups=2, clip=0.125), BEGUN)
        plain, truth = copy.deepcopy(life.names["plain"]), life.truth
        life.names.update(net=plain)
        life.new_optimiser()
        stepper = life.names["optimizer"]
        for number in range(3):
            x, labels = life._batch(number, 0)
            truth.run_optimizer = True
            loss, norm = truth.call(x, labels)
            out = plain(torch.from_numpy(x))
            torch_loss = ((out - torch.from_numpy(labels)) ** 2).mean()
            torch_loss.backward()
            torch_norm = torch.nn.utils.clip_grad_norm_([p for p in plain.parameters() if p.requires_grad], 0.125)
            stepper.step()
            stepper.zero_grad()
            assert (loss, norm) == pytest.approx((torch_loss.item(), torch_norm.item()), rel=1e-12)
        for name in ("inner.lora_A", "outer.lora_B"):
            held = plain.get_parameter(f"{name}.weight").detach().numpy()
            np.testing.assert_allclose(truth.values[name], held, rtol=1e-12)
        life.end()


def test_kernels_are_not_interpreted_in_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    (subject,) = Target.of(LivedRun()).subjects(STATE)
    life = RunLife(subject, CASE, BEGUN)
    life.names["os"] = os
    life.run('seen = os.environ.get("TRITON_INTERPRET")')
    life.end()
    assert life.names["seen"] is None
    assert os.environ["TRITON_INTERPRET"] == "1"


def test_a_diverging_run_decides_nothing() -> None:
    (subject,) = Target.of(LivedRun()).subjects(STATE)
    life = RunLife(subject, CASE, BEGUN)
    life.truth.values["inner.lora_A"] = np.full((1, 4), 1e9)
    with pytest.raises(Inconclusive, match=r"inner\.lora_A diverges"):
        judge_state(life)
    life.end()


def test_a_repeated_run_is_judged_until_it_diverges() -> None:
    """A right target refuses the numbers that overflow later; a wrong one fails before."""
    case = RunCase(seed=16, k=3, n=3, r=1, dropout=0.25, flag="foreach", life="split+fail-loss" + 6 * "+step")
    (subject,) = Target.of(LivedRun()).subjects(REPEAT)
    with pytest.raises(Inconclusive, match="the run diverges with step, after 2 operations that were judged"):
        REPEAT.check(subject, case)
    wrong = type("Wrong", (LivedRun,), {"LoraTraining": LeavesTheRandomStateOfAFailedCall})()
    (subject,) = Target.of(wrong).subjects(REPEAT)
    with pytest.raises(Violation, match="is not what it is without fail-loss"):
        REPEAT.check(subject, case)


def test_harmless_operations_are_left_out_of_the_run_beside() -> None:
    (subject,) = Target.of(LivedRun()).subjects(REPEAT)
    life = "split+mode-simulate+step+visit+fail-loss+restart+deepcopy+accumulate+fail-backward"
    assert set(life.split("+")) <= set(REPEATED)
    REPEAT.check(subject, RunCase(k=2, n=2, r=1, dropout=0.25, life=life))


def test_the_script_of_a_run_has_its_calls_and_needs_no_suite(tmp_path: Path) -> None:
    (tmp_path / "resuming.py").write_text(RESUMING)
    case = "dtype=float64 k=2 n=2 r=1 life=accumulate+restart"
    sys.path.insert(0, str(tmp_path))
    try:
        (subject,) = Target.load("resuming").subjects(STATE)
        result = Result(STATE.id, subject.name, "float64", case=case, status="fail", message="a gradient is wrong")
        text = script(STATE, subject, "resuming", result)
    finally:
        sys.path.remove(str(tmp_path))
    assert text is not None
    assert "import conformance" not in text
    assert "    # restart\n    target.save_training(training, folder, " in text
    assert len(text.splitlines()) < 220
    (tmp_path / "script.py").write_text(text)
    ran = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 1, ran.stderr
    assert "after restart" in ran.stdout


RESUMING = """
import reference
from reference import HybridFHEModel, LoraTraining, save_training


def load_training(training, path):
    step = reference.load_training(training, path)
    training.inference_model.zero_grad()
    return step
"""
