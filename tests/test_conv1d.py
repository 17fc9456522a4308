"""An adapted Conv1D of transformers, whose weight stays [in, out]: as a layer, in copies, in training, split."""

from __future__ import annotations

import copy
import pickle
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import optimized
import reference

conv1d = pytest.importorskip("transformers").pytorch_utils.Conv1D
both = pytest.mark.parametrize("implementation", [reference, optimized])


def adapted(implementation: ModuleType, n: int = 3, k: int = 4, **options: Any) -> Any:
    """An adapted Conv1D with an adapter that is not zero, in float64."""
    torch.manual_seed(0)
    layer = implementation.patch_linear_module(conv1d(n, k).double(), dim=2, use_triton=False, **options)
    nn.init.normal_(layer.lora_B.weight)
    return layer


def expected(layer: Any, x: Tensor) -> Tensor:
    return x @ layer.weight + layer.bias + layer.scale * x @ layer.lora_A.weight.T @ layer.lora_B.weight.T


@both
@pytest.mark.parametrize("use_dora", [False, True])
def test_the_constructor_and_the_patch_give_the_same_layer(implementation: ModuleType, use_dora: bool) -> None:
    patched = adapted(implementation, use_dora=use_dora)
    torch.manual_seed(0)
    built = implementation.LinearLoRA(conv1d(3, 4).double(), dim=2, use_dora=use_dora)
    nn.init.normal_(built.lora_B.weight)
    x = torch.randn(5, 4).double()
    assert type(patched) is type(built)
    assert (built.in_features, built.out_features, built.weight.shape) == (4, 3, (4, 3))
    assert torch.equal(patched(x), built(x))
    if not use_dora:
        assert torch.allclose(built(x), expected(built, x), atol=1e-12)
    for layer in (built, patched):
        y = layer(x)
        layer.merge()
        assert torch.allclose(layer(x), y, atol=1e-12)
        layer.unmerge()
        assert torch.equal(layer(x), y)
        layer.init_lora_weights("xavier")
        assert torch.allclose(layer(x), x @ layer.weight + layer.bias, atol=1e-12)


@both
def test_copies_and_checkpoints_keep_the_layer(implementation: ModuleType) -> None:
    layer, x = adapted(implementation, n=4), torch.randn(5, 4).double()
    fresh = implementation.patch_linear_module(conv1d(4, 4).double(), dim=2, use_triton=False)
    fresh.load_state_dict(layer.state_dict())
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), fresh):
        assert torch.allclose(other(x), expected(layer, x), atol=1e-12)
    assert "dim=2" in repr(layer)


@both
def test_its_base_product_can_run_elsewhere(implementation: ModuleType) -> None:
    model = nn.Sequential(nn.Linear(4, 4).double(), adapted(implementation, n=4))
    x = torch.randn(5, 4).double()
    y = model(x)
    y.sum().backward()
    gradient = model[1].lora_A.weight.grad.clone()
    assert implementation.get_remote_names(model) == ["0"], "an adapted layer has no remote product of its own"
    model[1].zero_grad()
    training = implementation.LoraTraining(model)
    names = implementation.get_remote_names(training.inference_model)
    assert [name for name in names if name.startswith("1.")] == [
        "1.base_layer.forward_module",
        "1.base_layer.backward_module",
    ]
    again = model(x)
    again.sum().backward()
    assert torch.allclose(again, y, atol=1e-12)
    assert torch.allclose(model[1].lora_A.weight.grad, gradient, atol=1e-12)
    assert implementation.merge_adapters(model) == 1
    assert torch.allclose(model(x), y, atol=1e-12)


@pytest.mark.parametrize("style", [reference.colwise_parallel_lora, reference.rowwise_parallel_lora])
def test_tensor_parallelism_refuses_it(style: Any) -> None:
    layer = adapted(reference)
    with pytest.raises(ValueError, match="the layer has fan_in_fan_out, a weight \\[K, N\\] as in Conv1D"):
        style()._partition_linear_fn("", layer, None)
