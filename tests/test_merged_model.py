"""Merging the adapters of a model, and layers that merging cannot represent: errors, and models as they were."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import optimized
import reference
from conformance.clauses.model.small_models import DoublingLinear, Toy

TOKENS = torch.arange(6).reshape(2, 3)
both = pytest.mark.parametrize("implementation", [reference, optimized])


def adapted(implementation: ModuleType, model: nn.Module, **options: Any) -> nn.Module:
    """The model with adapters that are not zero."""
    config = implementation.PeftConfig(match_all_linear=True, dim=2, **options)
    implementation.apply_lora_to_linear_modules(model, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return model


@both
def test_an_error_while_layers_are_merged_unmerges_them_again(implementation: ModuleType) -> None:
    model = adapted(implementation, Toy(), use_dora=True)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    head: Any = model.head
    with torch.no_grad():
        before["head.weight"] = head.weight.zero_().clone()
        before["head.lora_B.weight"] = head.lora_B.weight.zero_().clone()
    with pytest.raises(ValueError, match="zero in rows"):
        implementation.merge_adapters(model)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert not any(getattr(module, "merged", False) for module in model.modules())


@both
def test_a_model_without_adapters_is_refused(implementation: ModuleType) -> None:
    for function in (implementation.merge_adapters, implementation.unmerge_adapters):
        with pytest.raises(ValueError, match="Toy holds no adapted layer: expected a model with a LinearLoRA in it"):
            function(Toy())


@both
def test_a_tied_weight_is_named_with_both_its_owners(implementation: ModuleType) -> None:
    model = Toy()
    model.head = nn.Linear(6, 11)
    model.head.weight = model.embed.weight
    adapted(implementation, model)
    with pytest.raises(ValueError, match=r"head\.weight and embed\.weight share their memory.*a clone"):
        implementation.merge_adapters(model)
    model.head.weight = nn.Parameter(model.head.weight.clone(), requires_grad=False)
    assert implementation.merge_adapters(model) == 7


@both
def test_weights_that_lie_in_one_buffer_side_by_side_are_merged(implementation: ModuleType) -> None:
    flat = torch.randn(2 * 36)
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    for i, layer in enumerate(model):
        layer.weight = nn.Parameter(flat[36 * i : 36 * (i + 1)].view(6, 6))
    assert implementation.merge_adapters(adapted(implementation, model)) == 2
    implementation.unmerge_adapters(model)
    model.register_buffer("row", flat[6:12])
    with pytest.raises(
        ValueError, match=r"^0\.weight and row share their memory: merging 0 would change the model too"
    ):
        implementation.merge_adapters(model)


@both
def test_the_modules_of_a_layer_itself_may_hold_its_weight(implementation: ModuleType) -> None:
    model = adapted(implementation, Toy()).double()
    expected = model(TOKENS)
    implementation.LoraTraining(model)  # gives each layer a base_layer with the same weight
    assert implementation.merge_adapters(model) == 7
    assert torch.allclose(model(TOKENS), expected)


class Shifting(nn.Module):
    """A base layer of a class that merging does not know."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 1


@both
def test_a_layer_that_merging_cannot_represent_is_refused_by_its_class(implementation: ModuleType) -> None:
    refused: dict[str, Any] = {
        "DoublingLinear has its own forward": DoublingLinear(4, 4),
        "ParametrizedLinear computes its weight": nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
        "Shifting has its own forward": nn.Linear(4, 4),
    }
    for words, base in refused.items():
        layer = implementation.patch_linear_module(base, dim=2)
        if words.startswith("Shifting"):
            layer.base_layer = Shifting()
        with pytest.raises(ValueError, match=words):
            layer.merge()
        with pytest.raises(ValueError, match=f"^0: {words}"):
            implementation.merge_adapters(nn.Sequential(layer))
        assert not layer.merged


@both
@pytest.mark.parametrize("old", [False, True])
def test_a_normed_layer_keeps_its_weight_and_gets_an_adapter(implementation: ModuleType, old: bool) -> None:
    torch.manual_seed(0)
    with pytest.warns(FutureWarning) if old else pytest.MonkeyPatch.context():
        base: Any = (nn.utils.weight_norm if old else nn.utils.parametrizations.weight_norm)(nn.Linear(4, 3))
    x, plain = torch.randn(2, 4), base.weight.detach().clone()
    layer = implementation.patch_linear_module(base, dim=2, use_triton=False)
    nn.init.normal_(layer.lora_B.weight)
    assert {name for name, p in layer.named_parameters() if p.requires_grad} == {"lora_A.weight", "lora_B.weight"}
    y = layer(x)
    expected = x @ (plain + layer.scale * layer.lora_B.weight @ layer.lora_A.weight).T + layer.bias
    assert torch.allclose(y, expected, atol=1e-5)
    y.sum().backward()
    assert layer.lora_A.weight.grad is not None
    model = nn.Sequential(nn.Linear(4, 4), layer)
    with pytest.warns(UserWarning, match="1 is left alone: LinearLoRA"):
        implementation.LoraTraining(model)
    assert torch.equal(layer(x), y)
