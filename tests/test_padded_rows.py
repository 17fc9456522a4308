"""Rows in padded places: gathered and taken back, and a layer whose results are those of a product for each expert."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import optimized
import reference
from optimized import grouped_linear
from optimized.dispatch.padded_rows import why_not_even, why_not_padded
from optimized.nodes import batched as batched_node
from optimized.padded_rows import PaddedRows

ORDER = torch.tensor([4, 0, 2, 5, 1])  # of six rows; row 3 is absent
ENDS = [2, 2, 5]


@pytest.mark.parametrize("order", [ORDER, None])
def test_rows_are_taken_from_the_places_where_they_were_gathered(order: Tensor | None) -> None:
    rows = PaddedRows.of(order, ENDS, 6)
    x = torch.arange(12.0).view(6, 2) + 1
    placed = rows.gathered(x)
    assert placed.shape == (3, 3, 2)
    assert not placed[1].any()  # no row is read for a group without one
    assert torch.equal(placed[0, 2], placed[0, 1])  # an empty place holds a row of the same group
    missing = 3 if order is not None else 5
    want = x.clone()
    want[missing] = 0
    assert torch.equal(rows.taken(placed), want)
    assert [len(part) for part in rows.split(placed)] == [2, 0, 3]
    assert not rows.cleared(placed)[0, 2].any()


def layer(index: list[int], seed: int = 0) -> dict[str, Any]:
    torch.manual_seed(seed)
    experts, n, k, r = 3, 5, 7, 2
    return {
        "x": torch.randn(len(index), k, requires_grad=True),
        "expert_index": torch.tensor(index),
        "weight": torch.randn(experts, n, k),
        "bias": torch.randn(experts, n),
        "lora_A": torch.randn(experts, r, k, requires_grad=True),
        "lora_B": torch.randn(experts, n, r, requires_grad=True),
        "scale": -1.5,
    }


@pytest.mark.parametrize("same_bits", [False, True])
@pytest.mark.parametrize("index", [[0, 1, 2, 0, 1, 2], [2, 0, 1, -1, 0, 1, 2], [1, 0, 0, 1, 3, 1, 0]])
def test_padded_experts_equal_the_reference(index: list[int], same_bits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    node = grouped_linear.PaddedLoRALinear.apply
    monkeypatch.setattr(
        grouped_linear.PaddedLoRALinear, "apply", lambda *given: taken.append(1) or node(*given[:-1], same_bits)
    )
    found, want = layer(index), layer(index)
    y, exact = optimized.lora_grouped_linear(**found), reference.lora_grouped_linear(**want)
    torch.testing.assert_close(y, exact)
    g = torch.randn_like(y)
    y.backward(g)
    exact.backward(g)
    for name in ("x", "lora_A", "lora_B"):
        torch.testing.assert_close(found[name].grad, want[name].grad)
    assert taken


def test_a_row_of_nan_reaches_its_own_expert_alone() -> None:
    given = layer([0, 1, 1, 0, -1])
    with torch.no_grad():
        given["x"][3:] = torch.nan
        given["lora_A"][2] = given["lora_B"][2] = torch.nan  # of an expert without rows
    y = optimized.lora_grouped_linear(**given)
    y.sum().backward()
    assert y.isnan().any(1).tolist() == [False, False, False, True, False]
    assert given["lora_A"].grad.isnan().any((1, 2)).tolist() == [True, False, False]
    assert given["lora_B"].grad.isnan().any((1, 2)).tolist() == [True, False, False]


def test_padded_adapters_of_a_batch_equal_the_reference() -> None:
    torch.manual_seed(0)
    index = torch.tensor([1, 0, -1, 0, 1, 3, 3])
    fixed = (torch.randn(8, 4), torch.randn(8))
    scale = torch.tensor([2.0, -1.0, torch.nan, 0.5])  # no row has adapter 2
    both = []
    for module in (optimized, reference):
        torch.manual_seed(1)
        given = [torch.randn(*shape, requires_grad=True) for shape in ((7, 4), (4, 4, 4), (4, 8, 4))]
        y = module.lora_batched_linear(given[0], index, *fixed, *given[1:], scale)
        y.backward(torch.linspace(-1, 1, 56).view(7, 8))
        both.append([y, *(t.grad for t in given)])
    assert batched_node.placed(batched_node.SortedRows.of(index, [4] * 4), 7, 4) is not None
    for found, want in zip(*both, strict=True):
        torch.testing.assert_close(found, want)


def test_padded_adapters_may_have_another_dtype_than_the_batch() -> None:
    index = torch.tensor([0, 1, 1, -1, 0])
    x, W = torch.randn(5, 4, dtype=torch.bfloat16), torch.randn(8, 4, dtype=torch.bfloat16)
    A, B, scale = torch.randn(2, 4, 4), torch.randn(2, 8, 4), torch.ones(2)
    found = []
    for implementation in (optimized, reference):
        leaves = [t.clone().requires_grad_(True) for t in (x, A, B)]
        y = implementation.lora_batched_linear(leaves[0], index, W, None, *leaves[1:], scale)
        found.append([y, *torch.autograd.grad(y.float().sum(), leaves)])
    for got, want in zip(*found, strict=True):
        assert got.dtype == want.dtype
        torch.testing.assert_close(got, want, rtol=0.05, atol=0.05)


def test_uneven_groups_are_not_padded() -> None:
    assert why_not_even([8, 16]) is None
    assert why_not_even([16, 17, 18]) == "groups of 18 rows would have 48 places"
    assert why_not_even([0, 0]) == "no row has a group"
    given = layer([0, 1, 2])
    operands = [given[name] for name in ("x", "weight", "bias", "lora_A", "lora_B")]
    assert why_not_padded([1, 2, 3], 2.0, *operands) is None
    assert why_not_padded([1, 2, 3], 0.0, *operands) == "0 · NaN and rank 0 need separate operations"
    assert "float32 alone" in (why_not_padded([1, 2, 3], 2.0, operands[0].double(), *operands[1:]) or "")
    with torch.autocast("cpu", torch.bfloat16):
        assert "outside autocast" in (why_not_padded([1, 2, 3], 2.0, *operands) or "")
