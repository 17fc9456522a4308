"""Dropout from counted random numbers: the generator, the masks, and one mask for all kernels and both passes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from optimized import products
from optimized.dispatch.routes import MOST_MASKED_WIDE_RANK, why_not_masking_kernels, why_not_one_kernel
from optimized.dropout import CountedDropout
from optimized.philox import Kept, philox
from tests.support import interpreted_dropout
from tests.support.interpreter import interpreted

ONES = 0xFFFFFFFF
PI = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
# Source: Random123's tests/kat_vectors, philox4x32 of 7 and of 10 rounds.
KNOWN = [
    ((0, 0, 0, 0), 0, 7, "5f6fb709 0d893f64 4f121f81 4f730a48"),
    ((ONES,) * 4, ONES << 32 | ONES, 7, "5207ddc2 45165e59 4d8ee751 8c52f662"),
    (PI, 0x299F31D0_A4093822, 7, "4dfccaba 190a87f0 c47362ba b6b5242a"),
    ((0, 0, 0, 0), 0, 10, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ((ONES,) * 4, ONES << 32 | ONES, 10, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (PI, 0x299F31D0_A4093822, 10, "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize(("counter", "seed", "rounds", "words"), KNOWN)
def test_philox_agrees_with_its_authors_known_answers(
    counter: tuple[int, ...], seed: int, rounds: int, words: str
) -> None:
    found = philox(seed, tuple(map(torch.tensor, counter)), rounds)
    assert " ".join(f"{int(word):08x}" for word in found) == words


@pytest.mark.parametrize("task", interpreted_dropout.TASKS, ids=lambda task: task.__name__)
def test_interpreted_kernels_apply_the_same_mask_as_pytorch(task: Callable[[], None]) -> None:
    interpreted(task)


def mask(seed: int, limit: int, rows: int = 512, columns: int = 512) -> torch.Tensor:
    """A mask of zeros and ones in float64."""
    return Kept(seed, limit).mask(rows, columns).double()


@pytest.mark.parametrize("limit", [1, 6554, 32768, 58982, 65535])
def test_elements_are_kept_independently_at_the_keep_rate(limit: int) -> None:
    keep, seed = limit / 2**16, 0x1234_5678_9ABC_DEF1
    found = mask(seed, limit)
    variance = keep * (1 - keep)
    # every bound is six standard deviations, exceeded once in 5e8 masks
    assert abs(found.mean() - keep) <= 6 * (variance / found.numel()) ** 0.5
    for lane in range(8):
        assert abs(found[:, lane::8].mean() - keep) <= 6 * (8 * variance / found.numel()) ** 0.5
    if not 0.05 < keep < 0.95:
        return
    centred = found - keep
    others = [
        *((centred[row:, column:], centred[: 512 - row, : 512 - column]) for row, column in NEIGHBOURS),
        *((centred, mask(seed ^ 1 << bit, limit) - keep) for bit in (0, 31, 32, 61)),
    ]
    for one, other in others:
        assert abs((one * other).sum()) <= 6 * variance * one.numel() ** 0.5
    for axis in (0, 1):
        counts = found.sum(axis)
        assert abs(counts.var() / (512 * variance) - 1) <= 6 * (2 / 512) ** 0.5


NEIGHBOURS = ((1, 0), (0, 1), (1, 1), (0, 2), (0, 4), (0, 8), (8, 0), (64, 0), (0, 64), (1, 8), (256, 256))


def test_a_smaller_mask_is_a_part_of_a_larger_one() -> None:
    whole = mask(5, 30000, 9, 40)
    for columns in (1, 7, 8, 9, 33):
        assert torch.equal(mask(5, 30000, 4, columns), whole[:4, :columns])
    assert mask(5, 30000, 0, 8).shape == (0, 8)
    assert mask(5, 30000, 8, 0).shape == (8, 0)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.25 + 2**-17, 2**-18, 1 - 2**-18])
def test_the_rate_is_exact_on_average_over_seeds(rate: float) -> None:
    torch.manual_seed(0)
    limits = []
    for _ in range(4096):
        kept = CountedDropout.seeded(rate, "pre").kept
        limits.append(2**16 if kept is None else kept.limit)
    assert max(limits) - min(limits) <= 1
    fraction = (1 - rate) * 2**16 % 1
    assert abs(sum(limits) / 4096 - (1 - rate) * 2**16) <= 6 * (fraction * (1 - fraction) / 4096) ** 0.5


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_rates_zero_and_one_draw_no_mask(rate: float) -> None:
    dropout = CountedDropout(rate, on_input=True, seed=5)
    assert dropout.kept is None
    assert dropout.draw(2, torch.ones(1, 3), torch.ones(4, 1)) is None


@pytest.mark.parametrize(("on_input", "shape"), [(True, (2, 3)), (False, (2, 4))])
def test_the_drawn_mask_is_the_one_that_kernels_compute(on_input: bool, shape: tuple[int, int]) -> None:
    dropout = CountedDropout(0.5, on_input, seed=2**40)
    drawn = dropout.draw(2, torch.ones(1, 3), torch.ones(4, 1))
    assert drawn is not None
    assert drawn.shape == shape
    assert torch.equal(drawn, Kept(2**40, 32768).mask(*shape))


def test_pytorch_applies_the_mask_where_triton_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_runs_on_triton", lambda *_: False)
    torch.manual_seed(0)
    kept, dtype = Kept(3, 40000), torch.float64
    wide, narrow, middle = (torch.randint(-4, 5, shape).to(dtype) for shape in ((9, 21), (2, 21), (9, 2)))
    held, on_update = wide * kept.mask(9, 21), kept.mask(9, 21) * (0.5 * middle @ narrow)
    T, dB = held @ narrow.t(), 0.5 * held.t() @ middle
    assert torch.equal(products.lora_shrink(wide, narrow, dtype, kept), T)
    out = torch.empty_like(dB)
    products.weight_grad(wide, middle, 0.5, dtype, out, kept)
    assert torch.equal(out, dB)
    assert torch.equal(products.shrink_and_grad(wide, narrow.t(), middle, 0.5, dtype, out.zero_(), kept=kept), T)
    assert torch.equal(out, dB)
    for added in (False, True):
        y = wide.clone()
        products.lora_expand(middle, narrow.t(), 0.5, dtype, y, added, kept)
        assert torch.equal(y, on_update + added * wide)


@pytest.mark.parametrize(
    ("device", "dtype", "rank", "reason"),
    [
        ("cpu", torch.float64, 512, None),
        ("meta", torch.bfloat16, 512, None),
        ("meta", torch.float32, MOST_MASKED_WIDE_RANK, None),
        ("meta", torch.float32, MOST_MASKED_WIDE_RANK + 1, "at rank 33 products in torch.float32"),
    ],
)
def test_masking_kernels_are_refused_only_for_wide_rank_in_float32(
    device: str, dtype: torch.dtype, rank: int, reason: str | None
) -> None:
    found = why_not_masking_kernels(torch.empty(4, 8, dtype=dtype, device=device), rank)
    assert found is None if reason is None else found is not None and reason in found


def test_one_kernel_is_not_chosen_with_a_mask_unless_wanted() -> None:
    x, weight = (torch.empty(n, 8, dtype=torch.bfloat16, device="meta") for n in (4, 16))
    assert "with a mask" in (why_not_one_kernel(x, weight, 4, masked=True) or "")
    assert "no measurement shows that one kernel is faster" in (why_not_one_kernel(x, weight, 4) or "")
    assert why_not_one_kernel(x, weight, 4, wanted=True, masked=True) is None
