"""Layers on packed bases in `optimized`: the numbers, results and gradients of the reference, and what is saved."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import optimized
import reference
from optimized.dispatch.packed_node import why_not_packed, why_not_packed_layer
from optimized.dispatch.packed_weight import why_not_product_kernel, why_not_tiled
from optimized.packed import tiled_product
from optimized.packed_weight import as_fast
from reference.packed_layer import packed_base_of
from tests.support.packed_weights import EVERY, stored

IDS = [f"{name}-{n}x{k}-{'-'.join(map(str, options.values()))}" for name, n, k, options in EVERY]
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# compute dtype, x and bias, adapter; and the bound of an error relative to the largest element
PRECISIONS = (
    (None, torch.float32, torch.float32, 1e-5),
    (None, torch.float64, torch.float64, 1e-13),
    (None, torch.bfloat16, torch.bfloat16, 0.02),
    (torch.bfloat16, torch.float32, torch.float32, 0.02),
    (torch.float32, torch.bfloat16, torch.float32, 0.02),
)


@pytest.fixture(params=[False, True], ids=["one tile", "many tiles"])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes of tiles and parts: as they are, or so small that every weight has several."""
    if request.param:
        for name, size in {"TILE": 128, "PART": 512, "LEAST": 4, "SMALL": 64}.items():
            monkeypatch.setattr(tiled_product, name, size)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("weight", EVERY, ids=IDS)
def test_numbers_are_those_of_the_reference_bit_for_bit(weight: tuple[Any, ...]) -> None:
    plain = stored(*weight)
    for dtype in DTYPES:
        numbers = as_fast(plain).dequantize(dtype)
        assert numbers.dtype == dtype
        assert numbers.is_contiguous()
        assert torch.equal(numbers.view(torch.uint8), plain.dequantize(dtype).view(torch.uint8)), dtype


def test_every_float8_is_read_as_torch_reads_it() -> None:
    codes = torch.arange(256, dtype=torch.int16).to(torch.uint8).view(torch.float8_e4m3fn).view(16, 16)
    plain = reference.PackedWeight("fp8", (16, 16), {"codes": codes, "scale": torch.rand(16, 1)})
    torch.testing.assert_close(as_fast(plain).dequantize(), plain.dequantize(), rtol=0, atol=0, equal_nan=True)


def results(module: Any, weight: reference.PackedWeight, precision: tuple[Any, ...], seed: int = 0) -> list[Tensor]:
    """y, and the gradients of x, A, B and the bias."""
    compute, dtype, adapter, _ = precision
    (n, k), draws = weight.shape, torch.Generator().manual_seed(seed)

    def drawn(*shape: int, of: torch.dtype = dtype) -> Tensor:
        return torch.randn(*shape, generator=draws).to(of).requires_grad_()

    x, A, B, bias = drawn(3, 5, k), drawn(4, k, of=adapter), drawn(n, 4, of=adapter), drawn(n)
    y = module.lora_packed_linear(x, weight, bias, A, B, 2.0, compute_dtype=compute)
    return [y.detach(), *torch.autograd.grad(y, (x, A, B, bias), drawn(3, 5, n))]


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("weight", EVERY, ids=IDS)
def test_results_and_gradients_are_those_of_the_reference(weight: tuple[Any, ...]) -> None:
    held = stored(*weight)
    for precision in PRECISIONS:
        for name, got, expected in zip(
            ("y", "dX", "dA", "dB", "db"), *(results(m, held, precision) for m in (optimized, reference)), strict=True
        ):
            assert (got.dtype, got.shape) == (expected.dtype, expected.shape), (name, precision)
            error = (got - expected).abs().max() / expected.abs().max()
            assert error < precision[-1], (name, precision)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("weight", [EVERY[0], EVERY[1], EVERY[15]], ids=["Ŵ", "flat", "Ŵᵀ"])
def test_x_and_the_numbers_are_rounded_once_to_the_compute_dtype(weight: tuple[Any, ...]) -> None:
    held = stored(*weight)
    n, k = held.shape
    x, rounded = torch.randn(5, k, requires_grad=True), held.dequantize(torch.bfloat16).float()
    A, B = torch.zeros(2, k), torch.zeros(n, 2)
    y = optimized.lora_packed_linear(x, held, None, A, B, 1.0, compute_dtype=torch.bfloat16)
    torch.testing.assert_close(y, x.bfloat16().float() @ rounded.t(), rtol=1e-5, atol=1e-4)
    (dX,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(dX, rounded.sum(0).expand_as(x), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("region", [torch.float32, None])
def test_a_compute_dtype_is_not_changed_by_autocast(region: torch.dtype | None) -> None:
    """With a compute dtype the base product stays in float32, where the update is computed in autocast's dtype."""
    weight = as_fast(stored("nf4", 32, 64, {}))
    x, A, B = torch.randn(1024, 64), torch.randn(4, 64), torch.zeros(32, 4)  # so many rows that 16 bits are used
    with torch.autocast("cpu", torch.bfloat16):
        y = optimized.lora_packed_linear(x, weight, None, A, B, 1.0, compute_dtype=region)
    assert y.dtype == (region or torch.bfloat16)
    if region is not None:
        torch.testing.assert_close(y, x @ weight.dequantize().t(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["nf4", "gptq"])
def test_second_derivatives(name: str) -> None:
    weight = stored(name, 16, 64, {"group_size": 16} if name == "gptq" else {})
    leaves = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((2, 64), (16,), (2, 64), (16, 2))]
    results = []
    for module in (optimized, reference):
        x, bias, A, B = leaves
        y = module.lora_packed_linear(x, weight, bias, A, B, 0.5)
        first = torch.autograd.grad(y.square().sum(), (x, A, B), create_graph=True)
        results.append(torch.autograd.grad(sum(t.square().sum() for t in first), leaves))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("efficient", [False, True])
def test_x_and_its_shrunk_rows_and_the_storage_are_saved_and_nothing_else(efficient: bool) -> None:
    base = optimized.packed_linear(nn.Linear(96, 64), "nf4")
    layer = optimized.patch_linear_module(base, 4, use_memory_efficient_lora=efficient)
    x, saved = torch.randn(8, 96, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):  # type: ignore[func-returns-value]
        y = layer(x)
    own = {t.data_ptr() for t in (x, *layer.parameters(), *layer.buffers())}
    others = [list(t.shape) for t in saved if t.data_ptr() not in own]
    assert others == ([] if efficient else [[8, 4]])
    assert not any(isinstance(value, Tensor) for value in vars(y.grad_fn).values())


def test_a_storage_that_changes_between_the_passes_is_noticed() -> None:
    weight = stored("nf4", 32, 64, {})
    x = torch.randn(8, 64, requires_grad=True)
    A, B = torch.randn(4, 64), torch.randn(32, 4)
    y = optimized.lora_packed_linear(x, weight, None, A, B, 1.0)
    weight.fields["codes"].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_frozen_packed_layer_has_the_gradient_of_x_and_of_a_trained_bias() -> None:
    linear = nn.Linear(64, 32)
    layers = [module.packed_linear(copy.deepcopy(linear), "nf4") for module in (optimized, reference)]
    x, found = torch.randn(2, 3, 64, requires_grad=True), []
    for layer in layers:
        layer.bias.requires_grad_(True)
        y = layer(x)
        found.append([y, *torch.autograd.grad(y.square().sum(), (x, layer.bias))])
    torch.testing.assert_close(*found)
    assert type(layers[0]) is optimized.PackedLinear
    with pytest.raises(RuntimeError):
        layers[0](torch.randn(2, 63))


def test_the_gradient_of_a_bias_is_summed_in_the_dtype_of_the_bias() -> None:
    layer: Any = optimized.packed_linear(nn.Linear(64, 32), "nf4")
    layer.bias.requires_grad_(True)
    y = layer(torch.zeros(257, 64, dtype=torch.bfloat16))
    (found,) = torch.autograd.grad(y, layer.bias, torch.ones_like(y))
    assert found.dtype == torch.float32
    assert found.tolist() == [257.0] * 32  # bfloat16 has no 257


class TestTheReasonsForAFallback:
    def test_none_where_the_node_computes(self) -> None:
        weight = stored("nf4", 32, 64, {})
        assert why_not_packed(weight, torch.randn(2, 64)) is None

    def test_a_weight_with_its_own_dequantize(self) -> None:
        class Own:
            shape = (32, 64)

            def dequantize(self, dtype: torch.dtype) -> Tensor:
                return torch.ones(32, 64, dtype=dtype)

        x, A, B = torch.randn(2, 64), torch.randn(4, 64), torch.zeros(32, 4)
        assert "Own has its own dequantize" in str(why_not_packed(Own(), x))
        y = optimized.lora_packed_linear(x, Own(), None, A, B, 1.0)
        torch.testing.assert_close(y, x.sum(1, keepdim=True).expand(2, 32))

    def test_dora(self) -> None:
        layer: Any = optimized.patch_linear_module(optimized.packed_linear(nn.Linear(64, 32), "nf4"), 4, use_dora=True)
        assert "DoRA" in str(why_not_packed_layer(layer, packed_base_of(layer)))
        assert layer(torch.randn(2, 64)).shape == (2, 32)

    def test_a_base_with_its_own_forward(self) -> None:
        class Scaled(nn.Linear):
            def forward(self, x: Tensor) -> Tensor:
                return 3 * super().forward(x)

            def dequantize(self) -> Tensor:
                return 3 * self.weight

        layer: Any = optimized.patch_linear_module(Scaled(64, 32), 4)
        assert "Scaled has its own forward" in str(why_not_packed_layer(layer, packed_base_of(layer)))

    def test_functorch(self) -> None:
        weight = stored("nf4", 32, 64, {})
        x, A, B = torch.randn(2, 64), torch.randn(4, 64), torch.randn(32, 4)

        def summed(x: Tensor) -> Tensor:
            assert "torch.func" in str(why_not_packed(weight, x))
            return optimized.lora_packed_linear(x, weight, None, A, B, 1.0).sum()

        leaf = x.clone().requires_grad_()
        (expected,) = torch.autograd.grad(reference.lora_packed_linear(leaf, weight, None, A, B, 1.0).sum(), leaf)
        torch.testing.assert_close(torch.func.grad(summed)(x), expected)

    def test_blocks_without_a_table_and_kernels(self) -> None:
        assert "begin within a byte" in str(why_not_tiled(stored("nf4", 6, 48, {"block_size": 3})))
        assert why_not_tiled(stored("nf4", 5, 7, {})) is None
        weight = stored("nf4", 32, 64, {})
        assert "more than 64 rows" in str(why_not_product_kernel(weight, torch.randn(65, 64)))
        assert "tiles are faster" in str(why_not_product_kernel(weight, torch.randn(6, 64)))
        assert "no kernel reads gptq" in str(
            why_not_product_kernel(stored("gptq", 16, 32, {"group_size": 16}), torch.randn(6, 32))
        )
