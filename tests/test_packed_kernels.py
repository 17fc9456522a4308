"""The kernels of packed weights, interpreted: numbers bit for bit, products in both directions, and their layer."""

from __future__ import annotations

import itertools
from unittest import mock

import torch
from torch import nn

import optimized
from optimized.dispatch.packed_weight import WITH_KERNEL
from tests.support.interpreter import interpreted
from tests.support.packed_weights import EVERY, stored

WEIGHTS = [stored(*weight) for weight in EVERY if weight[0] in WITH_KERNEL]


def numbers() -> None:
    """Ŵ is that of the reference bit for bit, in each dtype."""
    from optimized import kernels

    for weight, dtype in itertools.product(WEIGHTS, (torch.float32, torch.bfloat16, torch.float16)):
        got = kernels.packed_dequantize(kernels.storage_of(weight), dtype)
        expected = weight.dequantize(dtype)
        assert torch.equal(got.view(torch.uint8), expected.view(torch.uint8)), (weight.format, weight.options, dtype)


def products() -> None:
    """Products with Ŵ and with its transpose are those of its numbers, of an x with any strides, with and without b."""
    from optimized import kernels

    torch.manual_seed(0)
    for weight, transposed in itertools.product(WEIGHTS, (False, True)):
        n, k = weight.shape
        held = torch.full((19, 2 * (n if transposed else k)), float("nan"))
        held[1:-1, ::2] = torch.randn(17, held.shape[1] // 2)
        x, bias = held[1:-1, ::2], None if transposed else torch.randn(n)
        storage, w = kernels.storage_of(weight), weight.dequantize()
        expected = x @ (w if transposed else w.t()) + (0 if bias is None else bias)
        y = kernels.packed_linear(x, storage, torch.float32, bias, transposed)
        torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-4)
    rounded = weight.dequantize(torch.bfloat16)
    y = kernels.packed_linear(x, storage, torch.bfloat16, None, True)
    torch.testing.assert_close(y, x @ rounded.float(), rtol=1e-5, atol=1e-4)
    x16 = torch.randn(3, n).bfloat16()
    y16 = kernels.packed_linear(x16, storage, torch.bfloat16, None, True)
    torch.testing.assert_close(y16.float(), x16.float() @ rounded.float(), rtol=8e-3, atol=1e-2)


def layers() -> None:
    """A `TritonLinearLoRA` on a packed base runs the kernel that its rows ask for; a `LinearLoRA` on a CPU does not."""
    from optimized import kernels

    base = optimized.packed_linear(nn.Linear(64, 32), "nf4")
    for use_triton, rows in itertools.product((True, False), (4, 70)):
        layer = optimized.patch_linear_module(
            optimized.packed_linear(nn.Linear(64, 32), "nf4"), 4, use_triton=use_triton
        )
        layer.load_state_dict(base.state_dict(), strict=False)
        x = torch.randn(rows, 64, requires_grad=True)
        called = []
        for name in ("packed_linear", "packed_dequantize"):
            spy = mock.patch.object(kernels, name, wraps=getattr(kernels, name))
            called.append((spy, spy.start()))
        y = layer(x)
        y.sum().backward()
        counts = [made.call_count for _, made in called]
        for spy, _ in called:
            spy.stop()
        assert counts == ([2, 0] if rows == 4 else [0, 2]) if use_triton else counts == [0, 0]
        torch.testing.assert_close(y, x @ base.dequantize().t() + layer.bias, rtol=1e-4, atol=1e-4)
        assert x.grad is not None
        torch.testing.assert_close(x.grad, base.dequantize().sum(0).expand_as(x), rtol=1e-4, atol=1e-4)


def test_the_interpreted_numbers_are_those_of_the_reference() -> None:
    interpreted(numbers)


def test_the_interpreted_products_are_those_of_the_numbers() -> None:
    interpreted(products)


def test_a_triton_layer_runs_the_kernels() -> None:
    interpreted(layers)
