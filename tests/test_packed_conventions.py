"""Packed bases: right layers of declared conventions pass, and what a user reads when something is refused."""

from __future__ import annotations

import re
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import optimized
import reference
from conformance.run.case_search import Examination
from conformance.run.profiles import PROFILES
from conformance.specification.clause import load_all
from conformance.target.target import Target
from tests.baselines.requantised import RequantisingPacked
from tests.campaigns.variants.packed import Repacking

both = pytest.mark.parametrize("implementation", [reference, optimized])
STATE = ("QNT-KEEP", "QNT-MERGE", "QNT-ADAPTER")


@pytest.mark.parametrize("kind", [RequantisingPacked, Repacking])
def test_a_right_layer_of_a_declared_convention_passes(kind: type) -> None:
    target, judged = Target.of(kind(), kind.__name__), []
    for clause in load_all(["quantised"]).values():
        if not clause.id.startswith(STATE):
            continue
        for subject in target.subjects(clause):
            result = Examination(clause, subject, "float32", PROFILES["quick"]).run()
            assert result.status == "pass", f"{clause.id}: {result.case}\n{result.message}"
            judged.append(clause.id)
    assert "QNT-KEEP-MODES" in judged
    assert ("QNT-MERGE-BOUND" in judged) is (kind is RequantisingPacked)
    assert ("QNT-MERGE-REFUSED" in judged) is (kind is Repacking)


def packed(implementation: ModuleType, **options: Any) -> Any:
    return implementation.packed_linear(nn.Linear(64, 32), "nf4", **options)


@both
def test_a_packed_layer_is_named_where_it_cannot_be_split(implementation: ModuleType) -> None:
    layer = implementation.patch_linear_module(packed(implementation), dim=2)
    model = nn.Sequential(nn.Linear(64, 64), layer)
    storage = r"whose weight is torch.uint8 \[1024, 1\]"
    with pytest.raises(ValueError, match=rf"^1 is a \w+OfPackedLinear {storage}: CustomLinear needs a floating"):
        implementation.LoraTraining.replace_layers_with_custom(model)
    with pytest.raises(ValueError, match=rf"^1 is a \w+OfPackedLinear {storage}, which is packed: expected a floating"):
        implementation.HybridFHEModel(model, ["1"])
    with pytest.raises(ValueError, match=r"^a CustomLinear of a weight torch.uint8 \[1024, 1\]: expected a floating"):
        implementation.CustomLinear(layer.weight)
    assert model[1] is layer
    assert type(model[0]) is nn.Linear


@both
def test_a_weight_that_is_stored_transposed_is_not_packed(implementation: ModuleType) -> None:
    product = implementation.ForwardModuleLinear(torch.ones(5, 3), weight_transposed=True)
    split = implementation.HybridFHEModel(nn.ModuleDict({"up": product}), ["up"])
    assert list(split.remote_modules) == ["up"]


@both
def test_a_refused_merge_says_what_to_do_instead(implementation: ModuleType) -> None:
    layer = implementation.patch_linear_module(packed(implementation), dim=2)
    expected = (
        "PackedLinear is packed as nf4, so that merging would round the update away: expected a floating point "
        "weight; merge_dequantized(layer) gives a new nn.Linear"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        layer.merge()
    with pytest.raises(ValueError, match=f"^0: {re.escape(expected)}$"):
        implementation.merge_adapters(nn.Sequential(layer))


class HQQLinear(nn.Module):
    """A packed layer that is no nn.Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.in_features = self.out_features = 4
        self.W_q = nn.Parameter(torch.ones(2, 4, dtype=torch.uint8), requires_grad=False)


@both
def test_packed_modules_that_are_no_linear_layers_are_named(implementation: ModuleType) -> None:
    model = nn.ModuleDict(
        {"q_proj": nn.Linear(4, 4), "k_proj": HQQLinear(), "v_proj": HQQLinear(), "gate": HQQLinear()}
    )
    expected = "k_proj, v_proj are left without an adapter: HQQLinear holds a packed weight and is no nn.Linear"
    with pytest.warns(UserWarning, match=f"^{expected}$"):
        count = implementation.apply_lora_to_linear_modules(
            model, implementation.PeftConfig(target_modules=["*_proj"], dim=2)
        )
    assert count == 1
    with pytest.warns(UserWarning, match=r"^gate is left without an adapter: HQQLinear holds a packed weight"):
        implementation.apply_lora_to_linear_modules(
            nn.ModuleDict({"gate": model["gate"], "up": nn.Linear(4, 4)}),
            implementation.PeftConfig(match_all_linear=True, dim=2),
        )


@both
def test_a_layer_with_damaged_fields_is_refused_by_its_path(implementation: ModuleType) -> None:
    base = packed(implementation)
    base.weight_absmax = base.weight_absmax[:-1]
    model = nn.ModuleDict({"up": nn.Linear(64, 64), "down": base})
    config = implementation.PeftConfig(match_all_linear=True, dim=2)
    with pytest.raises(
        ValueError, match=r"^down: field absmax of a weight \[32, 64\] in nf4 is float32 \[31\]: expected"
    ):
        implementation.apply_lora_to_linear_modules(model, config)
    assert not hasattr(model["up"], "lora_A")
    assert all(p.requires_grad for p in model["up"].parameters())


def test_a_sharded_layer_says_that_its_storage_is_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    base = packed(reference)
    monkeypatch.setattr(sys.modules["reference.packed_linear"], "is_sharded", lambda weight: weight is base.weight)
    with pytest.raises(ValueError, match=r"^the weight of this PackedLinear is sharded over ranks: expected the whole"):
        reference.packed_fields(base)
