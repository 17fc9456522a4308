"""Batches without gradients: each row is multiplied with all adapters, and has the same bits beside any other rows."""

from __future__ import annotations

from typing import Any

import torch

import optimized
from optimized.dispatch.batched_node import why_not_dense


def operands() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"x": (5, 8), "weight": (6, 8), "lora_A": (3, 4, 8), "lora_B": (3, 6, 4)}
    found = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    rest = {"scale": torch.tensor([1.0, 2.0, -1.0]), "ranks": torch.tensor([4, 2, 0])}
    return found | rest | {"bias": None, "adapter_index": torch.tensor([0, -1, 2, 0, 1])}


def test_a_row_has_the_same_bits_beside_other_adapters_without_gradients() -> None:
    given = operands()
    row = optimized.lora_batched_linear(**given)[0]
    for others in ([-1, -1, -1, -1], [0, 0, 0, 0], [1, 2, 1, 2]):
        index = torch.tensor([0, *others])
        assert torch.equal(optimized.lora_batched_linear(**given | {"adapter_index": index})[0], row)


def test_all_adapters_at_once_have_a_reason_not_to() -> None:
    given = operands()
    tensors = [given[name] for name in ("x", "weight", "bias", "lora_A", "lora_B")]
    assert why_not_dense(*tensors) is None
    x, weight, _, A, B = tensors
    assert why_not_dense(x, weight, None, A.clone().requires_grad_(), B) == "backward needs the rows sorted"
    assert "one dtype" in str(why_not_dense(x.float(), weight, None, A, B))
    assert "1 to 64" in str(why_not_dense(x, weight, None, A.repeat(6, 1, 1), B.repeat(6, 1, 1)))
    spoilt = B.clone()
    spoilt[2] = torch.nan
    assert "not finite" in str(why_not_dense(x, weight, None, A, spoilt))
    y = optimized.lora_batched_linear(**given | {"lora_B": spoilt})
    assert bool(y.isfinite().all())  # the adapter has rank 0
