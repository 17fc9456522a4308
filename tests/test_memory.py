"""Bytes that the fused layers save for backward, beyond x and the parameters."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import nn

import optimized
import reference

pytestmark = pytest.mark.usefixtures("set_aside")  # every count begins with a collection
M, K, N, R = 96, 80, 72, 8


def saved_bytes(layer: Any, x: torch.Tensor) -> int:
    """Bytes of distinct storages that one forward pass saves, without x and the parameters.

    The count includes tensors seen by the saved-tensor hooks, and tensors stored as attributes of graph nodes, which
    the hooks do not see.
    """
    known = {t.untyped_storage().data_ptr() for t in (x, *layer.parameters())}
    hooked: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            hooked[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = layer(x)
    known.add(y.untyped_storage().data_ptr())
    gc.collect()
    return sum({**kept_by_the_graph(y, known), **hooked}.values())


def kept_by_the_graph(y: torch.Tensor, known: set[int]) -> dict[int, int]:
    """Bytes of each storage held by a tensor attribute of the graph's custom nodes."""
    sizes: dict[int, int] = {}
    todo, seen = [y.grad_fn], set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        todo += [following for following, _ in node.next_functions]
        for value in getattr(node, "__dict__", {}).values():
            if isinstance(value, torch.Tensor) and value.untyped_storage().data_ptr() not in known:
                sizes[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
    return sizes


def built(dtype: torch.dtype, **options: Any) -> tuple[Any, torch.Tensor]:
    """A layer with a non-zero adapter, and an input that requires grad."""
    layer = optimized.LinearLoRA(nn.Linear(K, N, dtype=dtype), dim=R, **options)
    nn.init.normal_(layer.lora_B.weight)
    return layer, torch.randn(M, K, dtype=dtype, requires_grad=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_dropout_only_s_is_saved(dtype: torch.dtype) -> None:
    layer, x = built(dtype)
    assert saved_bytes(layer, x) <= M * R * dtype.itemsize


@pytest.mark.parametrize("position", ["pre", "post"])
def test_dropout_saves_one_bit_per_element(position: str) -> None:
    layer, x = built(torch.float32, dropout=0.1, dropout_position=position)
    elements = M * (K if position == "pre" else N)
    assert 0 < saved_bytes(layer, x) <= M * R * 4 + elements / 8 + 8


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("position", ["pre", "post"])
def test_memory_efficient_saves_nothing(dropout: float, position: str) -> None:
    layer, x = built(torch.float32, dropout=dropout, dropout_position=position, use_memory_efficient_lora=True)
    assert saved_bytes(layer, x) == 0


def block_of(dtype: torch.dtype, widths: list[tuple[int, int]]) -> tuple[nn.Module, list[Any]]:
    """A projection from K to N features for each (N, K), and the module that holds their parameters."""
    layers = nn.ModuleList(optimized.LinearLoRA(nn.Linear(k, n, dtype=dtype), dim=R) for n, k in widths)
    projections = []
    for layer in layers:
        assert isinstance(layer, optimized.LinearLoRA)
        projections.append((layer.weight, layer.bias, layer.lora_A.weight, layer.lora_B.weight, layer.scale))
    return layers, projections


class Fused(nn.Module):
    """A fused block as a module; `parts` holds its parameters."""

    def __init__(self, function: Any, parts: nn.Module, projections: list[Any], *options: Any) -> None:
        super().__init__()
        self.parts, self.call = parts, lambda x: function(x, *projections, *options)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.call(x)
        return torch.cat(y, -1) if isinstance(y, tuple) else y


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", reference.mlp.ACTIVATIONS)
def test_a_gated_block_saves_only_gate_and_up(dtype: torch.dtype, activation: str) -> None:
    parts, projections = block_of(dtype, [(N, K), (N, K), (K, N)])
    x = torch.randn(M, K, dtype=dtype, requires_grad=True)
    assert saved_bytes(Fused(optimized.lora_mlp, parts, projections, activation), x) == 2 * M * N * dtype.itemsize
    # without a gate the block saves only up
    ungated = Fused(lambda x, *p: optimized.lora_mlp(x, None, *p), parts, [*projections[1:], activation])
    assert saved_bytes(ungated, x) == M * N * dtype.itemsize
    assert saved_bytes(Fused(reference.lora_mlp, parts, projections, activation), x) > 2 * M * N * dtype.itemsize


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_query_key_and_value_save_only_x_times_lora_a(dtype: torch.dtype) -> None:
    parts, projections = block_of(dtype, [(N, K), (R, K), (R, K)])
    x = torch.randn(M, K, dtype=dtype, requires_grad=True)
    block = Fused(optimized.lora_qkv, parts, projections)
    assert saved_bytes(block, x) == 3 * M * R * dtype.itemsize
    for *_, lora_B, _ in projections:
        lora_B.requires_grad_(False)
    assert saved_bytes(block, x) == 0


def test_the_measurement_counts_what_eager_saves() -> None:
    layer, x = built(torch.float32, dropout=0.1, dropout_position="pre")
    eager = nn.Sequential(nn.Dropout(0.1), nn.Linear(K, N))
    assert saved_bytes(eager, x) >= M * K * 4
    assert saved_bytes(layer, x) < saved_bytes(eager, x)
