"""Quantised layers: their integers and formulas, and fast products that are bit-equal to the reference's."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch

import reference
from optimized.dispatch.integers import why_not_float32, why_not_int8
from optimized.quantization import QuantizedLinear
from reference.quantization import (
    Quantized,
    quantize_dynamic,
    quantize_weight,
    step_and_zero_point,
)
from tests.support.int8_products import with_int8_products


@pytest.fixture(autouse=True)
def products(monkeypatch: pytest.MonkeyPatch) -> None:
    """The int8 and float32 products of a CPU; tests/test_integers_kernel.py tests the interpreted kernel."""
    monkeypatch.setattr("optimized.quantization.why_not_kernel", lambda *_: "not here")
    with_int8_products(monkeypatch)


def test_integers_stand_for_numbers() -> None:
    values = Quantized(torch.tensor([[3, 5], [0, 1]]), torch.tensor([[0.5], [2.0]]).double(), torch.tensor([[1], [-4]]))
    assert values.dequantize().tolist() == [[1.0, 2.0], [8.0, 10.0]]
    assert quantize_dynamic(torch.zeros(3, 0), 8).zero_point.tolist() == [[0]] * 3
    assert quantize_weight(torch.ones(2, 3), 8).zero_point.dtype == torch.int64


def test_steps_are_neither_subnormal_nor_lost_in_the_values() -> None:
    low = torch.tensor([[0.0], [1.0], [2.0**-1030], [-3.0]], dtype=torch.float64)
    high = torch.tensor([[2.0**-1020], [1 + 2.0**-50], [2.0**-1029], [-3.0]], dtype=torch.float64)
    scale, zero_point = step_and_zero_point(low, high, 8, 0)
    assert scale[:, 0].tolist() == [2.0**-1022, (1 + 2.0**-50) * 2.0**-52, 2.0**-1022, 3.0]
    assert zero_point.dtype == torch.float64
    assert zero_point[::3, 0].tolist() == [0.0, 1.0]


def test_the_largest_accumulator_is_that_of_the_largest_row() -> None:
    layer = reference.QuantizedLinear(torch.tensor([[1.0, -0.25], [-1.0, -1.0]]), None, 4, (0.0, 1.0))
    assert layer.weight is not None
    assert layer.weight.tolist() == [[7, -2], [-7, -7]]
    assert layer.largest_accumulator == 15 * 14
    layer.clear()
    with pytest.raises(RuntimeError, match="the weight was cleared here: its sums are not known"):
        layer.largest_accumulator  # noqa: B018


@pytest.mark.parametrize("n_bits", [2, 8, 16])
@pytest.mark.parametrize("kind", [reference.QuantizedLinear, QuantizedLinear])
@pytest.mark.parametrize("far", [0.0, 1e3, 1e9, 1e13])
def test_zero_points_of_any_size_are_corrected(kind: Any, far: float, n_bits: int) -> None:
    generator = torch.Generator().manual_seed(n_bits)
    x, weight = (torch.randn(size, generator=generator).double() + far for size in ((3, 5), (2, 5)))
    layer = kind(weight, None, n_bits)
    rows = layer.quantize(x)
    raw, y = layer.accumulate(rows.values), layer(x, torch.float64)
    for i, j in ((i, j) for i in range(3) for j in range(2)):
        z_x, z_w = int(rows.zero_point[i]), int(layer.weight_zero_point[j])
        sums = int(rows.values[i].sum()), int(layer.weight_sum[j])
        exact = int(raw[i, j]) - (z_w * sums[0] + z_x * sums[1] - z_x * z_w * 5)
        scaled = Fraction(exact) * Fraction(float(rows.scale[i])) * Fraction(float(layer.weight_scale[j]))
        assert float(y[i, j]) == pytest.approx(float(scaled), rel=1e-15, abs=1e-15 * beyond(rows, layer))


def beyond(x: Quantized, layer: reference.QuantizedLinear) -> float:
    """The size of the terms where they do not fit int64 and are computed in float64; else 0."""
    levels = 2**layer.n_bits
    largest = [levels + int(zero_point.abs().amax()) for zero_point in (x.zero_point, layer.weight_zero_point)]
    size = 4 * layer.in_features * largest[0] * largest[1]
    return 0.0 if size < 2**62 else size * float(x.scale.amax() * layer.weight_scale.amax())


@pytest.mark.parametrize("n_bits", [2, 5, 8, 9, 16])
@pytest.mark.parametrize("shape", [(200, 33, 7), (65, 5, 3), (1, 1, 2), (3, 1, 5), (0, 3, 2), (2, 0, 2), (2, 3, 0)])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_every_route_is_bit_equal_to_the_reference(n_bits: int, shape: tuple[int, ...], offset: float) -> None:
    m, k, n = shape
    generator = torch.Generator().manual_seed(m + k + n)
    x, weight = (torch.randn(size, generator=generator) + offset for size in ((m, k), (n, k)))
    for low_high in (None, (-1.0, offset + 2.0)):
        plain = reference.QuantizedLinear(weight, weight.sum(1), n_bits, low_high)
        fast = QuantizedLinear(weight, weight.sum(1), n_bits, low_high)
        rows, fast_rows = plain.quantize(x), fast.quantize(x)
        assert torch.equal(rows.values, fast_rows.values)
        assert torch.equal(plain.accumulate(rows.values), fast.accumulate(rows.values))
        for dtype in (torch.float64, torch.bfloat16):
            assert torch.equal(plain(x, dtype), fast(x, dtype))


def test_inputs_that_require_grad_give_the_references_result() -> None:
    weight, x = torch.linspace(-1, 1, 66).reshape(2, 33), torch.linspace(0, 3, 99).reshape(3, 33)
    plain, fast = (kind(weight, weight.sum(1), 8, None) for kind in (reference.QuantizedLinear, QuantizedLinear))
    assert torch.equal(fast(x.requires_grad_(), torch.float32), plain(x, torch.float32))


def test_float32_products_are_used_only_where_they_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optimized.quantization.why_not_int8", lambda *_: "not here")
    weight, x = torch.linspace(-1, 1, 64).reshape(4, 16), torch.linspace(0, 1, 48).reshape(3, 16)
    plain, fast = reference.QuantizedLinear(weight, None, 8), QuantizedLinear(weight, None, 8)
    assert why_not_float32(fast) is None
    rows = plain.quantize(x)
    assert torch.equal(plain.accumulate(rows.values), fast.accumulate(rows.values))
    assert why_not_float32(QuantizedLinear(weight.repeat(1, 400), None, 12)) == (
        f"sums of up to {reference.QuantizedLinear(weight.repeat(1, 400), None, 12).largest_accumulator} "
        f"do not fit the 24 bits of float32"
    )
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        assert why_not_float32(fast) == "float32 products are set to 'high' precision"
    finally:
        torch.set_float32_matmul_precision(before)


def test_int8_products_are_refused_with_a_reason() -> None:
    weight = torch.linspace(-1, 1, 64).reshape(4, 16)
    x = torch.zeros(2, 16, dtype=torch.int64)
    assert why_not_int8(QuantizedLinear(weight, None, 9), x) == "9 bits do not fit int8"
    one: Any = why_not_int8(QuantizedLinear(weight[:, :1], None, 8), x[:, :1])
    assert "one feature" in one
