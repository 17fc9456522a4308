"""The suite's findings in popular LoRA libraries, at the versions in ci/constraints.txt; each finding was verified."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

import pytest
from torch import nn

from conformance.errors import TargetError
from conformance.run.case_search import Examination
from conformance.run.profiles import Profile
from conformance.specification.clause import MUST, load_all
from conformance.target.target import Target

FINDINGS = {
    # the state_dict of a merged layer is merged; a 1-D x gains a dimension; a zero row gives NaN; a second injection
    # discards the first; a shared module is replaced under one name; an adapter drops in a model in eval mode
    "peft": {"MRG-STATE", "LIFE-LAYER-STATE", "DORA-LEAD", "DORA-ZERO-ROW", "MOD-AGAIN", "MOD-TWICE", "MOD-SHARED"}
    # (MOD-MERGE-OWN: after merging into a spectral_norm base, forward raises)
    | {"MOD-DROP-EVAL", "MOD-TRAINING-FLAG", "MOD-MERGE-OWN"}
    # (lives: an adapter drops in a model in eval mode; a second injection leaves a base that was thawed trainable)
    | {"LIFE-MODEL-FWD", "LIFE-MODEL-BWD", "LIFE-MODEL-STATE"},
    # the layer holds a lambda, which cannot be pickled
    # and adds its update in place into the base's product, which a selective checkpoint may have kept
    "loralib": {"LAY-PICKLE", "LIFE-LAYER-FWD", "LIFE-LAYER-STATE"},
    "torchtune": set(),
    "deepspeed": set(),
    # a copy of a layer forgets its alpha
    "keras": {"LAY-COPY", "LAY-PICKLE", "LIFE-LAYER-FWD", "LIFE-LAYER-BWD", "LIFE-LAYER-STATE"},
    # the layer holds a lambda, as loralib's
    "litgpt": {"LAY-PICKLE"},
}
LIBRARIES = ("loralib", "torchtune", "nemo_automodel", "unsloth", "axolotl", "sglang", "vllm")
LIBRARIES += ("speechbrain", "deepspeed", "keras", "litgpt", "adapters", "lycoris")
SLOW = ("LAY-COMPILE", "LIFE-LAYER-COMPILE", "LAY-MEM-LEAK")
FEW = Profile("few", volume=2, interpreted=1, shrinks=0)
ENOUGH = Profile("enough", volume=24, interpreted=1, shrinks=0)  # to fail a clause that a peer is known to fail


@pytest.mark.filterwarnings("ignore")  # a peer may warn, e.g. of merging twice
@pytest.mark.parametrize("name", FINDINGS)
def test_a_peer_fails_exactly_the_known_findings(name: str) -> None:
    target = Target.of(pytest.importorskip(f"conformance.targets.{name}"), name)
    failed = {}
    for clause in load_all().values():
        if clause.level != MUST or clause.id in SLOW:
            continue
        dtype = "float32" if "float32" in clause.dtypes else (*clause.dtypes, "any")[0]
        for subject in target.subjects(clause):
            result = Examination(clause, subject, dtype, ENOUGH if clause.id in FINDINGS[name] else FEW).run()
            if result.status != "pass":
                failed[clause.id] = result.message
    assert set(failed) == FINDINGS[name] | set(target.deviations) & set(failed), failed
    assert set(target.deviations) <= set(load_all())


def load_with(name: str, fake: ModuleType | None, monkeypatch: pytest.MonkeyPatch) -> str:
    """The error when a target is loaded with a fake module for its library, or with the library missing."""
    for loaded in [key for key in sys.modules if key.startswith((f"conformance.targets.{name}", f"{name}."))]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, name, fake)  # type: ignore[arg-type]
    with pytest.raises(TargetError) as caught:
        Target.load(f"conformance.targets.{name}")
    sys.modules.pop(f"conformance.targets.{name}", None)
    return str(caught.value)


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_missing_library_is_named_with_its_install_command(name: str, monkeypatch: Any) -> None:
    said = load_with(name, None, monkeypatch)
    assert f"needs {name}" in said
    assert "pip install" in said or "ci/peers" in said


def test_a_library_without_the_expected_class_names_the_supported_version(monkeypatch: pytest.MonkeyPatch) -> None:
    said = load_with("loralib", ModuleType("loralib"), monkeypatch)
    assert "written for 0.1.2" in said
    assert "cannot import name 'Linear'" in said


class Renamed(nn.Linear):
    """A layer with loralib's arguments but with other names for its parameters."""

    def __init__(self, k: int, n: int, **options: Any) -> None:
        super().__init__(k, n)
        self.scaling = 1.0
        self.first, self.second = nn.Linear(k, options["r"]), nn.Linear(options["r"], n)


class Refusing(nn.Linear):
    """A layer whose constructor has other arguments than loralib's."""

    def __init__(self, k: int, n: int, *, rank: int) -> None:
        super().__init__(k, n + rank)


@pytest.mark.parametrize(("layer", "why"), [(Renamed, "lora_A"), (Refusing, "unexpected keyword argument")])
def test_a_changed_layer_is_detected_when_the_target_is_loaded(
    layer: type, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = ModuleType("loralib")
    fake.Linear = layer  # type: ignore[attr-defined]
    said = load_with("loralib", fake, monkeypatch)
    assert "written for 0.1.2" in said
    assert why in said


def test_plain_pytorch_passes_the_clauses_that_judge_the_libraries() -> None:
    target = Target.of(importlib.import_module("conformance.targets.eager"), "eager")
    for name in ("LAY-FWD", "LAY-FWD-MIXED", "LAY-BWD-LEAD", "LAY-BWD-MIXED", "LAY-AMP", "LAY-COPY", "LAY-SCALING"):
        clause = load_all()[name]
        for subject in target.subjects(clause):
            result = Examination(clause, subject, "float32", FEW).run()
            assert result.status == "pass", f"{name}: {result.message}"


def test_a_target_without_dora_does_not_claim_it() -> None:
    pytest.importorskip("loralib")
    assert "dora" not in Target.of(importlib.import_module("conformance.targets.loralib")).claimed
