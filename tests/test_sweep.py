"""The kernel that reads g once computes both T and dB: partial sums, tails, layouts, ranks, and when it is chosen."""

from __future__ import annotations

import mmap

import pytest
import torch
from torch import Tensor

from optimized.dispatch.routes import CACHED_BYTES, why_not_one_reading
from optimized.tuned_kernels import MOST_ONE_READING_RANK
from tests.support.interpreter import interpreted

# Interpreted blocks are at most 128: the large shapes have several tiles of N and splits of M, each with a tail.
SHAPES = ((5, 7, 3), (130, 200, 16), (600, 150, 32), (16, 16, 1))


def both_products() -> None:
    """T and dB, at each shape, dtype and layout, are within the error of their sums and one rounding."""
    from optimized import kernels

    torch.manual_seed(0)
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        unit = torch.finfo(wide).eps
        for M, N, R in SHAPES:
            for layout in ("rows", "columns", "every other")[: 3 if M == 130 else 1]:
                g = laid_out(torch.randn(M, N).to(dtype), layout)
                b, s = torch.randn(R, N).to(dtype).t(), torch.randint(-8, 9, (M, R)).to(wide)
                out = torch.full((R, N), torch.nan, dtype=dtype).t()
                t = kernels.shrink_and_grad(g, b, s, 1.5, dtype, out)
                assert t.dtype == wide
                exact = g.double() @ b.double(), 1.5 * (g.double().t() @ s.double())
                size = g.double().abs() @ b.double().abs(), 1.5 * (g.double().abs().t() @ s.double().abs())
                assert ((t - exact[0]).abs() <= 16 * unit * size[0]).all(), (dtype, M, N, R, layout)
                allowed = 16 * unit * size[1] + torch.finfo(dtype).eps / 2 * exact[1].abs()
                assert ((out.double() - exact[1]).abs() <= allowed).all(), (dtype, M, N, R, layout)
    for M, N, R in ((0, 4, 2), (4, 0, 2), (4, 3, 0)):
        out = torch.full((N, R), torch.nan)
        t = kernels.shrink_and_grad(torch.ones(M, N), torch.ones(N, R), torch.ones(M, R), 1.0, torch.float32, out)
        assert t.shape == (M, R)
        assert not t.any()
        assert not out.any()


def laid_out(g: Tensor, layout: str) -> Tensor:
    """The matrix with contiguous rows, with contiguous columns, or with NaN between its columns."""
    if layout == "columns":
        return g.t().contiguous().t()
    if layout == "every other":
        return torch.full((len(g), 2 * g.shape[1]), torch.nan, dtype=g.dtype)[:, ::2].copy_(g)
    return g


def far_columns() -> None:
    """The factor's columns are 2³⁰ elements apart, so the third is beyond 2³¹, where 32-bit offsets overflow."""
    from optimized import kernels

    torch.manual_seed(0)
    g, b, x, w = (torch.randint(-2, 3, shape).bfloat16() for shape in ((9, 16), (16, 3), (9, 8), (16, 8)))
    s, out = torch.randint(-2, 3, (9, 3)).float(), torch.empty(16, 3)
    assert torch.equal(kernels.shrink_and_grad(g, far(b), s, 1.0, g.dtype, out), g.float() @ b.float())
    assert torch.equal(out, g.float().t() @ s)
    y = kernels.linear_expand(x, w, None, s, far(b), 1.0)
    assert torch.equal(y.float(), x.float() @ w.float().t() + s @ b.float().t())


def far(near: Tensor) -> Tensor:
    """A copy with columns 2³⁰ + 64 elements apart; the pages between them are never touched."""
    apart = 2**30 + 64
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    pages = mmap.mmap(-1, 2 * (2 * apart + len(near)), flags=flags)
    return torch.frombuffer(pages, dtype=near.dtype).as_strided(near.shape, (1, apart)).copy_(near)


def test_columns_of_a_factor_may_be_far_apart() -> None:
    interpreted(far_columns)


def test_one_read_of_g_gives_both_products() -> None:
    interpreted(both_products)


@pytest.mark.parametrize(
    ("device", "elements", "dtype", "rank", "reason"),
    [
        ("cpu", 1, torch.float32, MOST_ONE_READING_RANK, None),
        ("cpu", 1, torch.float32, MOST_ONE_READING_RANK + 1, "at rank 33 the partial sums"),
        ("meta", CACHED_BYTES // 2 + 1, torch.bfloat16, 16, None),
        ("meta", CACHED_BYTES // 2, torch.bfloat16, 16, "16777216 bytes, is in the cache"),
        ("meta", CACHED_BYTES, torch.float32, 16, "products in torch.float32 take as long"),
        ("meta", CACHED_BYTES, torch.bfloat16, 33, "at rank 33"),
    ],
)
def test_the_single_read_kernel_is_chosen_only_where_it_saves_bytes(
    device: str, elements: int, dtype: torch.dtype, rank: int, reason: str | None
) -> None:
    g = torch.empty(elements, 1, dtype=dtype, device=device)
    found = why_not_one_reading(g, rank, dtype)
    assert found is None if reason is None else found is not None and reason in found
