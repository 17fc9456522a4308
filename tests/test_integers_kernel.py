"""The kernel for quantised products is exact and bit-equal to the reference; it is interpreted, so shapes are small."""

from __future__ import annotations

import itertools
from unittest import mock

import torch
from torch import Tensor

import reference
from optimized.dispatch.integers import why_not_kernel
from optimized.quantization import QuantizedLinear
from tests.support.interpreter import interpreted

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# Interpreted blocks are at most 128, and 512 along K: the second shape has two tiles along M and N, the last along K.
SHAPES = ((1, 1, 1), (130, 131, 20), (3, 5, 33), (17, 3, 515))


def within(shape: tuple[int, int], dtype: torch.dtype, inner: int = 1) -> tuple[Tensor, Tensor]:
    """A buffer filled with a sentinel, and a view of this shape and inner stride inside it."""
    held = torch.full((shape[0] + 2, (shape[1] + 2) * inner), 99 if dtype == torch.int8 else -7, dtype=dtype)
    return held, held[1:-1, inner:-inner:inner]


def exact_results() -> None:
    """The kernel's int64 and float results are exact, for packed and strided operands, with and without bias."""
    torch.manual_seed(0)
    for (M, N, K), inner in itertools.product(SHAPES, (1, 2)):
        (_, x), (_, w) = within((M, K), torch.int8, inner), within((N, K), torch.int8, inner)
        x.random_(-128, 128), w.random_(-128, 128)
        rows, columns = torch.randn(3, M).double(), torch.randn(4, N).double()
        rows[:2], columns[:2] = (rows[:2] * 1e4).round(), (columns[:2] * 1e4).round()
        small = M * N < 128
        compare(x, w, rows, columns, FLOATS if small else FLOATS[2 * inner - 2 : 2 * inner])
        if small:
            compare(x, w.t().contiguous().t(), rows, columns, FLOATS[:1])
    no_features = torch.empty(2, 0, dtype=torch.int8)
    compare(no_features, no_features, torch.randn(3, 2).double().round(), torch.randn(4, 2).double().round(), FLOATS)


def compare(x: Tensor, w: Tensor, rows: Tensor, columns: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
    """Check the kernel's results with and without correction, scales and bias, and that it writes nothing else."""
    from optimized import kernels

    M, N = len(x), len(w)
    raw = x.long() @ w.long().t()
    corrected = raw.double() - (rows[0, :, None] * columns[0] + rows[1, :, None] * columns[1])
    y = torch.empty(M, N, dtype=torch.int64)
    kernels.int8_linear(x, w, rows[:2], columns[:2], y)
    assert torch.equal(y, corrected.long()), (x.shape, w.shape)
    kernels.int8_linear(x, w, torch.zeros(2, M).double(), torch.zeros(2, N).double(), y)
    assert torch.equal(y, raw), (x.shape, w.shape)
    scaled = corrected * (rows[2, :, None] * columns[2])
    for dtype, biased in itertools.product(dtypes, (False, True)):
        held, found = within((N, M), dtype)
        kernels.int8_linear(x, w, rows, columns[: 3 + biased], found.t())
        assert torch.equal(found.t(), (scaled + columns[3] if biased else scaled).to(dtype)), (x.shape, dtype, biased)
        held[1:-1, 1:-1] = -7
        assert (held == -7).all(), "written beside the result"


def extreme_sums() -> None:
    """The largest products over the most features that fit int32 are exact; zero rows or columns work."""
    from optimized import kernels

    for M, N in ((0, 3), (3, 0)):
        x, w = (torch.zeros(n, 4, dtype=torch.int8) for n in (M, N))
        kernels.int8_linear(x, w, torch.ones(2, M).double(), torch.ones(2, N).double(), torch.empty(M, N).long())
    K = 2**17 - 1
    x = torch.full((2, K), -128, dtype=torch.int8)
    x[1, 0] = -127  # an odd square: the sum needs all of its 31 bits
    y = torch.empty(2, 3, dtype=torch.int64)
    kernels.int8_linear(x, torch.cat((x, -1 - x[:1])), torch.zeros(2, 2).double(), torch.zeros(2, 3).double(), y)
    square = 2**14 * K
    assert y.tolist() == [[square, square - 128, -127 * 128 * K], [square - 128, square - 255, -127 * (128 * K - 1)]]


def layers() -> None:
    """A layer that uses the kernel is bit-equal to the reference; where the kernel does not run there is a reason."""
    from optimized import kernels

    torch.manual_seed(0)
    integers = kernels.int8_linear
    with mock.patch.object(kernels, "int8_linear", side_effect=integers) as launched:
        for M, K, N in ((3, 5, 2), (17, 33, 20), (2, 1, 3), (0, 3, 2), (2, 3, 0), (2, 0, 3)):
            for n_bits, offset in itertools.product((2, 8, 9), (0.0, 1e3, 1e13)):
                # at 1e13 the correction is not exact in float64
                x, weight = torch.randn(M, K).double() + offset, torch.randn(N, K).double() + offset
                for low_high in (None, (-1.0, offset + 2.0)):
                    launched.reset_mock()
                    same_bits(x, weight, n_bits, low_high)
                    assert launched.call_count == (0 if n_bits == 9 or 0 in (M, K, N) else 3)
    wide = QuantizedLinear(torch.ones(1, 2**17), None, 8)
    assert why_not_kernel(wide, torch.ones(1, 1)) == "sums over 131072 features may leave int32"
    large = QuantizedLinear(torch.ones(2**7, 2**7), None, 8)
    assert why_not_kernel(large, torch.ones(1, 2**7)) is None
    assert why_not_kernel(large, torch.ones(2, 2**7)) == "the interpreter is slow for more than 16384 multiplications"


def same_bits(x: Tensor, weight: Tensor, n_bits: int, low_high: tuple[float, float] | None) -> None:
    """Check that integers and y, in two dtypes, are bit-equal to the reference's."""
    plain, fast = (
        kind(weight, weight.sum(1), n_bits, low_high) for kind in (reference.QuantizedLinear, QuantizedLinear)
    )
    assert why_not_kernel(fast, x) == ("9 bits do not fit int8" if n_bits == 9 else None)
    rows = plain.quantize(x)
    assert torch.equal(plain.accumulate(rows.values), fast.accumulate(rows.values))
    for dtype in (torch.float64, torch.bfloat16):
        assert torch.equal(plain(x, dtype), fast(x, dtype)), (x.shape, weight.shape, n_bits, low_high)


def test_the_interpreted_kernel_gives_exact_results() -> None:
    interpreted(exact_results)


def test_the_largest_sums_are_exact() -> None:
    interpreted(extreme_sums)


def test_a_layer_using_the_kernel_is_bit_equal_to_the_reference() -> None:
    interpreted(layers)
