"""The kernel that adds the partial sums of a split product: several tiles each way, in interpreted Triton."""

from __future__ import annotations

import pytest
import torch

from optimized.kernels import tiles
from optimized.kernels.split_k_reduce import split_k_reduce

pytestmark = pytest.mark.skipif(not tiles.INTERPRETED, reason="Triton is not interpreted here")


@pytest.mark.parametrize("transposed", [False, True], ids=["rows", "columns"])
def test_every_tile_of_the_result_is_the_scaled_sum(transposed: bool) -> None:
    partials = torch.randint(-8, 9, (3, 300, 70), generator=torch.Generator().manual_seed(0)).float()
    out = torch.full((70, 300) if transposed else (300, 70), torch.nan)
    split_k_reduce(partials, 0.5, out.t() if transposed else out)
    assert torch.equal(out.t() if transposed else out, 0.5 * partials.sum(0))


def test_a_result_half_way_between_two_numbers_is_rounded_to_even() -> None:
    partials = torch.tensor([[[257.0], [259.0], [1.0]]])
    out = torch.empty(3, 1, dtype=torch.bfloat16)
    split_k_reduce(partials, 1.0, out)
    assert out.flatten().tolist() == [256.0, 260.0, 1.0]
