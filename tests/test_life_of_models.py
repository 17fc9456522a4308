"""Lives of a model: coverage, shrinking, what a target lacks, refused calls, and the script."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import reference
from conformance.clauses.life import refused_calls
from conformance.clauses.life.covering_walk import possible
from conformance.clauses.life.life_case import LifeCase
from conformance.clauses.life.model import MODEL_LIVES, MODEL_OPERATIONS, MODEL_START
from conformance.clauses.life.model_life import ModelLife
from conformance.judgement.outcomes import Violation
from conformance.judgement.result import Result
from conformance.numerics.dtypes import FLOAT_DTYPES
from conformance.reproducer.reproducer import script
from conformance.run.case_search import Examination
from conformance.run.profiles import PROFILES
from conformance.specification.clause import REGISTRY, load_all
from conformance.target.target import Target
from tests.baselines.lived_model import LivedModel
from tests.campaigns.variants.lives import SavesMergedWeights
from tests.known_bad.life.model import FreezesEarlierAdapters
from tests.known_bad.life.model_files import LoadsBesideAMerge

FWD, STATE, REFUSED = (REGISTRY[f"LIFE-MODEL-{name}"] for name in ("FWD", "STATE", "REFUSED"))


@pytest.mark.parametrize("lives", [MODEL_LIVES, refused_calls.LIVES], ids=["model", "refused"])
def test_every_pair_is_met_in_quick_in_some_dtype_of_a_clause(lives: Any) -> None:
    every, met = possible(lives.operations, MODEL_START, 2), set()
    for clause in (clause for clause in REGISTRY.values() if clause.cases is lives):
        for dtype in FLOAT_DTYPES:
            count = PROFILES["quick"].cases(clause, "cpu")
            cases = [lives.draw(0, clause.id, i, dtype=dtype) for i in range(count)]
            met |= {pair for case in cases for pair in pairwise(case.operations)}
    assert met == every
    assert ("merge", "apply-inner") in every or lives is refused_calls.LIVES
    assert ("untie", "untie") not in every


def test_a_failing_life_of_a_model_is_shrunk_to_two_operations() -> None:
    (subject,) = Target.of(FreezesEarlierAdapters(), "twin").subjects(STATE)
    result = Examination(STATE, subject, "float32", PROFILES["quick"]).run()
    assert result.case is not None
    assert set(LifeCase.parse(result.case).operations) == {"apply-inner", "apply-outer"}, result.case
    assert "does not require grad" in (result.message or "")


def test_operations_on_models_that_a_target_lacks_are_left_out() -> None:
    target = SimpleNamespace(apply_lora_to_linear_modules=reference.apply_lora_to_linear_modules)
    (subject,) = Target.of(target).subjects(FWD)
    assert MODEL_LIVES.lacking(subject) == {"merge", "unmerge", "save", "load", "load-plain"}
    assert FWD.check(subject, LifeCase(k=4, n=4, r=2, life="apply-inner+merge+save+load+apply-outer+tie")) is not None
    assert not Target.of(SimpleNamespace(LinearLoRA=reference.LinearLoRA)).subjects(FWD)


class TakesOneConfig(LivedModel):
    """A call freezes the adapters of an earlier one, which the target declares."""

    CONFORMANCE = {"features": {"second_config": "absent"}}  # noqa: RUF012

    def apply_lora_to_linear_modules(self, model: nn.Module, peft_config: Any) -> int:
        before = self.layers(model)
        count = super().apply_lora_to_linear_modules(model, peft_config)
        for layer in before.values():
            layer.requires_grad_(False)
        return count


class KeepsTheBase(TakesOneConfig):
    """It does not freeze the embedding when it adapts a model that was thawed."""

    def apply_lora_to_linear_modules(self, model: nn.Module, peft_config: Any) -> int:
        trained = model.embed.weight.requires_grad
        count = super().apply_lora_to_linear_modules(model, peft_config)
        model.embed.weight.requires_grad_(trained)
        return count


def test_a_target_that_takes_one_config_adapts_a_model_once() -> None:
    (subject,) = Target.of(TakesOneConfig(), "one config").subjects(STATE)
    assert Examination(STATE, subject, "float32", PROFILES["quick"]).run().status == "pass"
    life = ModelLife(subject, LifeCase(k=3, n=4, r=2), MODEL_START)
    for name in ("apply-outer", "apply-inner", "merge"):
        life.act(MODEL_OPERATIONS[name])
    assert life.past == ["apply-outer", "merge"]


def test_a_target_that_takes_one_config_is_judged_by_its_first() -> None:
    (subject,) = Target.of(KeepsTheBase(), "keeps the base").subjects(STATE)
    with pytest.raises(Violation, match=r"embed\.weight requires grad"):
        STATE.check(subject, LifeCase(k=3, n=4, r=2, life="apply-inner"))


def test_a_target_may_refuse_to_load_into_a_plain_model() -> None:
    class Refuses(LivedModel):
        def load_adapter(self, model: nn.Module, path: Any) -> Any:
            if not self.layers(model):
                raise ValueError("the model has no adapters")
            return super().load_adapter(model, path)

    (subject,) = Target.of(Refuses(), "refuses").subjects(FWD)
    assert MODEL_LIVES.lacking(subject) == {"load-plain"}
    life = ModelLife(subject, LifeCase(k=3, n=4, r=2), MODEL_START)
    for name in ("apply-outer", "save", "load-plain", "load"):
        life.act(MODEL_OPERATIONS[name])
    life.end()
    assert life.past == ["apply-outer", "save", "load"]


def test_a_square_weight_tells_a_loaded_layer_from_another() -> None:
    """Each layer is judged with its own input, so one wrong layer of several is named."""
    case = LifeCase(k=4, n=4, r=2, bias=True, life="apply-inner+save+merge+load")
    (right,) = Target.of(LivedModel(), "right").subjects(FWD)
    assert FWD.check(right, case) is not None
    (twin,) = Target.of(LoadsBesideAMerge(), "twin").subjects(FWD)
    with pytest.raises(Violation, match="the weight of up after load") as caught:
        FWD.check(twin, case)
    assert "lived    apply-inner, save, merge, load" in str(caught.value)


def test_a_target_that_adapts_layers_of_integers_need_not_refuse_them() -> None:
    class Adapts(LivedModel):
        def apply_lora_to_linear_modules(self, model: nn.Module, peft_config: Any) -> int:
            for module in model.modules():
                if isinstance(module, nn.Linear) and module.weight.dtype == torch.uint8:
                    return 3
            return super().apply_lora_to_linear_modules(model, peft_config)

    for thing, lacking in ((Adapts(), {"apply-integers"}), (LivedModel(), set())):
        (subject,) = Target.of(thing, "adapts").subjects(REFUSED)
        assert refused_calls.LIVES.lacking(subject) == lacking
        assert REFUSED.check(subject, LifeCase(k=4, n=3, r=2, life="apply-integers+apply-inner+apply-again"))


def test_the_script_of_a_life_of_a_model_has_its_calls_and_needs_no_suite(tmp_path: Path) -> None:
    (tmp_path / "thawing.py").write_text(THAWING)
    case = "k=4 n=3 r=2 life=apply-inner+save+thaw+load"
    sys.path.insert(0, str(tmp_path))
    try:
        (subject,) = Target.load("thawing").subjects(STATE)
        result = Result(STATE.id, subject.name, "float32", case=case, status="fail", message="wrong")
        text = script(STATE, subject, "thawing", result)
    finally:
        sys.path.remove(str(tmp_path))
    assert "import conformance" not in text
    assert "    # save\n    folder = new_folder()\n    target.save_adapter(model, config(['up', 'down']" in text
    assert "    # load\n    target.load_adapter(model, folder)" in text
    assert len(text.splitlines()) < 160
    (tmp_path / "script.py").write_text(text)
    ran = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 1, ran.stderr
    assert "embed.weight requires grad" in ran.stdout


THAWING = """
import reference
from reference import PeftConfig, apply_lora_to_linear_modules, save_adapter


def load_adapter(model, path):
    flags = [parameter.requires_grad for parameter in model.parameters()]
    config = reference.load_adapter(model, path)
    for parameter, flag in zip(model.parameters(), flags):
        parameter.requires_grad_(flag)
    return config
"""


@pytest.mark.parametrize("name", [f"LIFE-{of}-{what}" for of in ("LAYER", "MODEL") for what in ("FWD", "STATE")])
def test_a_target_may_save_merged_weights_if_it_says_so(name: str) -> None:
    result = lived(SavesMergedWeights(), name)
    assert result.status == "pass", f"{result.case}\n{result.message}"


@pytest.mark.parametrize("name", ["LIFE-LAYER-STATE", "LIFE-MODEL-STATE"])
def test_a_target_that_saves_merged_weights_and_does_not_say_so_fails(name: str) -> None:
    silent = type("Silent", (SavesMergedWeights,), {"CONFORMANCE": {}})()
    assert "weight'] after merge" in (lived(silent, name).message or "")


def lived(target: Any, name: str) -> Result:
    """The result of a target in a clause, in a dtype in which `quick` loads into merged layers and models."""
    clause = load_all()[name]
    (subject,) = Target.of(target, "lived").subjects(clause)
    return Examination(clause, subject, "bfloat16", PROFILES["quick"]).run()
