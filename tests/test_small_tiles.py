"""Every kernel with tiles of 16: several of each axis, each with a tail, where the interpreter else takes one of all.

Operands are small integers, so that every sum is exact and results are equal, not close.
"""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor

import optimized.products
from optimized.philox import Kept
from tests.support.interpreter import interpreted
from tests.support.packed_weights import EVERY, stored

M, N, K, R = 72, 34, 140, 36
KEPT = (None, Kept(2**40 + 3, 2**15))


def in_small_tiles(check: Callable[[], None]) -> Callable[[], None]:
    """Run a function with blocks of 16 in place of the sizes that a kernel asks for."""

    @functools.wraps(check)
    def checked() -> None:
        from optimized import kernels

        torch.manual_seed(0)
        with pytest.MonkeyPatch.context() as patch:
            for name in [name for name in sys.modules if name.startswith(f"{kernels.__name__}.")]:
                if hasattr(sys.modules[name], "block"):
                    patch.setattr(sys.modules[name], "block", lambda *_: 16)
            check()

    return checked


def integers(*shape: int, most: int = 2) -> Tensor:
    """Integers as float32, in memory with a NaN between each two of them."""
    held = torch.full((*shape[:-1], 2 * shape[-1]), torch.nan)
    held[..., ::2] = torch.randint(-most, most + 1, shape).float()
    return held[..., ::2]


def some(t: Tensor, kept: Kept | None) -> Tensor:
    """The elements that dropout keeps, not scaled; 0 for the others."""
    return t if kept is None else torch.where(kept.mask(*t.shape) > 0, t, 0.0)


def are_right(of: ModuleType) -> None:
    """The products of an adapter, with and without dropout, of strided operands."""
    x, A, B, g, s = integers(M, K), integers(R, K), integers(N, R), integers(M, N), integers(M, R)
    for kept in KEPT:
        assert torch.equal(of.lora_shrink(x, A, torch.float32, kept), some(x, kept) @ A.T)
        for added in (False, True):
            out = torch.ones(M, N)
            of.lora_expand(s, B, 0.5, torch.float32, out, added, kept)
            assert torch.equal(out, some(0.5 * (s @ B.T), kept) + (1 if added else 0))
        for out in (torch.full((N, R), torch.nan), torch.full((R, N), torch.nan).T):
            of.weight_grad(g, s, 0.5, torch.float32, out, kept)
            assert torch.equal(out, 0.5 * (some(g, kept).T @ s))
        t = of.shrink_and_grad(g, B[:, :16], s[:, :16], 0.5, torch.float32, out := torch.empty(N, 16), kept=kept)
        assert torch.equal(t, some(g, kept) @ B[:, :16])
        assert torch.equal(out, 0.5 * (some(g, kept).T @ s[:, :16]))
    rounded = of.lora_shrink(x + 2.0**-9, A, torch.bfloat16)  # bfloat16 rounds it to x, but where x is 0
    assert torch.equal(rounded, (x + 2.0**-9).bfloat16().float() @ A.T)


@in_small_tiles
def products() -> None:
    """Those of the kernels."""
    from optimized import kernels

    are_right(kernels)


@in_small_tiles
def one_kernel() -> None:
    """The base product and the update in one kernel, whose tiles are of contiguous bfloat16."""
    from optimized import kernels

    x, W, S, B = (integers(*shape).bfloat16().contiguous() for shape in ((M, 144), (64, 144), (M, R), (64, R)))
    bias = integers(64).bfloat16()
    for kept, weight in ((kept, weight) for kept in KEPT for weight in (W, W.T.contiguous().T)):
        y = kernels.linear_expand(x, weight, bias, S.float(), B, 0.5, kept=kept)
        update = some(0.5 * (S.float() @ B.float().T), kept)
        assert torch.equal(y, (x.float() @ W.float().T + bias.float() + update).bfloat16())


@in_small_tiles
def packed_weights() -> None:
    """The numbers of a packed weight, and products with them both ways."""
    from optimized import kernels
    from optimized.dispatch.packed_weight import WITH_KERNEL

    for given in (given for given in EVERY if given[0] in WITH_KERNEL):
        weight = stored(*given)
        storage, numbers = kernels.storage_of(weight), weight.dequantize()
        assert torch.equal(kernels.packed_dequantize(storage, torch.float32), numbers), given
        for transposed, factor in ((False, numbers.T), (True, numbers)):
            x = integers(40, len(factor))
            y = kernels.packed_linear(x, storage, torch.float32, None, transposed)
            torch.testing.assert_close(y, x @ factor, rtol=1e-5, atol=1e-4)


@in_small_tiles
def int8_products() -> None:
    """Integer products, and their corrections by rows and columns."""
    from optimized import kernels

    x, weight = integers(40, 70, most=127).to(torch.int8), integers(50, 70, most=127).to(torch.int8)
    rows, columns = integers(2, 40, most=9).double(), integers(2, 50, most=9).double()
    y = torch.full((40, 50), -7, dtype=torch.int64)
    kernels.int8_linear(x, weight, rows, columns, y)
    assert torch.equal(y, x.long() @ weight.long().T - (rows.T @ columns).long())


def every_kernel() -> None:
    """All of them, in one process."""
    for check in (products, one_kernel, packed_weights, int8_products):
        check()


def test_every_tile_and_its_tail_is_right() -> None:
    interpreted(every_kernel)


def test_products_without_triton_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    for asked in ("why_not_triton", "why_not_one_kernel"):
        monkeypatch.setattr(f"optimized.products.{asked}", lambda *_: "not here")
    are_right(optimized.products)
    x, W, S, B, b = integers(M, K), integers(N, K), integers(M, R), integers(N, R), integers(N)
    for kept, bias, dtype in itertools.product(KEPT, (None, b), (torch.float32, torch.bfloat16)):
        cast = [None if t is None else t.to(dtype) for t in (x, W, bias)]
        y = optimized.products.linear_expand(*cast, S, B.to(dtype), 0.5, kept=kept)  # type: ignore[arg-type]
        exact = x @ W.T + some(0.5 * (S @ B.T), kept) + (0 if bias is None else bias)
        torch.testing.assert_close(y.float(), exact, rtol=0 if dtype == torch.float32 else 2.0**-6, atol=0)
