"""What users of the two APIs do in their own tests: Concrete ML's `LoraTraining` and NeMo Automodel's matching rule."""

from __future__ import annotations

from collections import namedtuple
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import optimized
import reference

Scored = namedtuple("Scored", ["something_else"])
BOTH = pytest.mark.parametrize("package", [reference, optimized], ids=["reference", "optimized"])


def plain(package: ModuleType, model: nn.Module) -> Any:
    """LoraTraining of a model without adapters."""
    with pytest.warns(UserWarning, match=f"{type(model).__name__} has no LoRA layer") as caught:
        training = package.LoraTraining(model)
    assert caught[0].filename == __file__
    return training


@BOTH
def test_a_model_without_adapters_is_trained(package: ModuleType) -> None:
    model = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 5))
    first, last = model[0], model[2]
    training = plain(package, model)
    assert training.inference_model is model
    assert model[0] is first
    assert isinstance(model[2], package.CustomLinear)
    training.update_training_parameters(loss_fn=nn.CrossEntropyLoss())
    loss, norm = training((torch.randn(3, 10), torch.randint(0, 5, (3,))))
    assert loss.requires_grad
    assert norm is None
    assert first.weight.grad is not None
    assert last.weight.grad is None


@BOTH
def test_only_what_is_outside_custom_linears_is_updated(package: ModuleType) -> None:
    model = nn.Sequential()
    for name in ("linear1", "linear2", "lora_layer"):
        model.add_module(name, nn.Linear(2, 2))
    training = plain(package, model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    arguments = {"gradient_accumulation_steps": 1, "max_grad_norm": 1.0}
    training.update_training_parameters(optimizer, None, nn.MSELoss(), arguments)
    training.replace_layers_with_custom(model, skip_first=False)
    training.toggle_run_optimizer(True)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    training((torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 1.5]])))
    changed = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert changed == {"lora_layer.weight", "lora_layer.bias"}


@BOTH
def test_a_named_tuple_without_a_loss_is_no_loss(package: ModuleType) -> None:
    class Lossless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)

        def forward(self, x: torch.Tensor, labels: Any = None) -> Scored:
            return Scored(self.linear(x).sum() if labels is not None else torch.tensor(1.0))

    with pytest.raises(ValueError, match="The model did not return a loss"):
        plain(package, Lossless())((torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 1.5]])))


@BOTH
def test_a_matcher_without_options_has_its_default_as_target(package: ModuleType) -> None:
    with pytest.warns(UserWarning, match="adapting '\\*_proj'"):
        matcher = package.ModuleMatcher()
    assert matcher.target_modules == ["*_proj"]
    assert (matcher.exclude_modules, matcher.match_all_linear, matcher.is_causal_lm) == ([], False, False)
