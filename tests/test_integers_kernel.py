"""The kernel of quantised products gives exact integers, and the reference's bits; interpreted, so on small shapes."""

from __future__ import annotations

from tests.commands import python

EXACT = """
import torch
from optimized import kernels

torch.manual_seed(0)
assert kernels.INTERPRETED

def within(shape, dtype, inner=1):
    # a matrix with these strides, in the middle of memory that would spoil a sum
    held = torch.full((shape[0] + 2, (shape[1] + 2) * inner), 99 if dtype == torch.int8 else -7, dtype=dtype)
    return held, held[1:-1, inner:-inner:inner]

def correct(x, w, rows, columns):
    raw = x.long() @ w.long().t()
    return raw, raw.double() - (rows[0, :, None] * columns[0] + rows[1, :, None] * columns[1])

def compare(x, w, rows, columns):
    (M, N), (raw, corrected) = (len(x), len(w)), correct(x, w, rows, columns)
    y = torch.empty(M, N, dtype=torch.int64)
    kernels.integers(x, w, rows[:2], columns[:2], y)
    assert torch.equal(y, corrected.long()), (x.shape, w.shape)
    kernels.integers(x, w, torch.zeros(2, M).double(), torch.zeros(2, N).double(), y)
    assert torch.equal(y, raw), (x.shape, w.shape)
    y = corrected * (rows[2, :, None] * columns[2])
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        for biased in (False, True):
            held, found = within((N, M), dtype)
            kernels.integers(x, w, rows, columns[: 3 + biased], found.t())
            assert torch.equal(found.t(), (y + columns[3] if biased else y).to(dtype)), (x.shape, dtype, biased)
            held[1:-1, 1:-1] = -7
            assert (held == -7).all(), "written beside the result"

for M, N, K in ((1, 1, 1), (3, 5, 33), (17, 70, 20), (130, 3, 16), (2, 2, 0)):
    for inner in (1, 2):
        (_, x), (_, w) = within((M, K), torch.int8, inner), within((N, K), torch.int8)
        x.random_(-128, 128), w.random_(-128, 128)
        rows, columns = torch.randn(3, M).double(), torch.randn(4, N).double()
        rows[:2], columns[:2] = (rows[:2] * 1e4).round(), (columns[:2] * 1e4).round()
        compare(x, w, rows, columns)
        compare(x, w.t().contiguous().t(), rows, columns)
for M, N in ((0, 3), (3, 0)):
    bytes_of = [torch.zeros(n, 4, dtype=torch.int8) for n in (M, N)]
    kernels.integers(*bytes_of, *(torch.ones(2, n).double() for n in (M, N)), torch.empty(M, N, dtype=torch.int64))
K = 2**17 - 1  # the most features whose sums fit int32
x = torch.full((2, K), -128, dtype=torch.int8)
x[1, 0] = -127  # whose square is odd, so that the sum needs all of its 31 digits
y = torch.empty(2, 3, dtype=torch.int64)
kernels.integers(x, torch.cat((x, -1 - x[:1])), torch.zeros(2, 2).double(), torch.zeros(2, 3).double(), y)
square = 2**14 * K
assert y.tolist() == [[square, square - 128, -127 * 128 * K], [square - 128, square - 255, -127 * (128 * K - 1)]]
print("kernel compared")
"""

LAYER = """
import torch, reference
from optimized import kernels
from optimized.quantization import QuantizedLinear, why_not_kernel

launched, integers = [], kernels.integers
kernels.integers = lambda *operands: (launched.append(1), integers(*operands))
torch.manual_seed(0)
for M, K, N in ((3, 5, 2), (17, 33, 20), (2, 1, 3), (0, 3, 2), (2, 3, 0), (2, 0, 3)):
    for n_bits in (2, 8, 9):
        for offset in (0.0, 1e3, 1e13):  # beyond 1e12 the correction does not fit float64's integers
            x, weight = torch.randn(M, K).double() + offset, torch.randn(N, K).double() + offset
            for low_high in (None, (-1.0, offset + 2.0)):
                plain, fast = (kind(weight, weight.sum(1), n_bits, low_high)
                               for kind in (reference.QuantizedLinear, QuantizedLinear))
                why = why_not_kernel(fast, x)
                assert why == ("9 bits do not fit int8" if n_bits == 9 else None), why
                del launched[:]
                rows = plain.quantize(x)
                assert torch.equal(plain.accumulate(rows.values), fast.accumulate(rows.values))
                for dtype in (torch.float64, torch.bfloat16):
                    assert torch.equal(plain(x, dtype), fast(x, dtype)), (M, K, N, n_bits, offset, low_high)
                assert len(launched) == (0 if n_bits == 9 or 0 in (M, K, N) else 3)
wide = QuantizedLinear(torch.ones(1, 2**17), None, 8)
assert why_not_kernel(wide, x) == "sums over 131072 features may leave int32"
large = QuantizedLinear(torch.ones(2**7, 2**7), None, 8)
assert why_not_kernel(large, torch.ones(1, 2**7)) is None
assert why_not_kernel(large, torch.ones(2, 2**7)) == "interpreted, more than 16384 multiplications take long"
print("layer compared")
"""


def test_the_interpreted_kernel_is_exact_and_a_layer_gives_the_references_bits_by_it() -> None:
    ended = python("-c", EXACT + LAYER, TRITON_INTERPRET="1")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == ["kernel compared", "layer compared"]
