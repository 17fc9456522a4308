"""The noise in results of the backend seal, before it is rounded away, and the bound that `evaluate` checks."""

from __future__ import annotations

import pytest
import torch

from reference.encrypted import seal_backend
from reference.encrypted.packed_noise import SEAL, check_noise
from reference.encrypted.polynomial_layout import Packing
from tests.campaigns.seal_noise import distance, measured, products
from tests.test_seal_backend import operands, product

pytest.importorskip("seal")
LIMIT, SIZE = SEAL.largest_row, SEAL.polynomial_size


@pytest.mark.parametrize(
    ("name", "within"),
    [
        # over 8 to 30 keys, the ratio of std to law deviates from 1 by 0.007, 0.010, 0.077 and 0.019; equal weights, as
        # in the third, give the same result many times
        ("2048·3·100, random 8 bits", 0.06),
        ("1·512·2048, random 8 bits", 0.08),
        ("1·512·2048, all 255 · -128", 0.5),
        ("1100·41·100, rows at the limit 560866", 0.1),
    ],
)
def test_measured_noise_follows_the_law_and_stays_below_the_bound(name: str, within: float) -> None:
    (q, weight) = next((q, weight) for each, q, weight in products(4096) if each == name)
    found = measured(name, q, weight)
    assert found.results == len(q) * len(weight) >= 2000
    assert found.wrong == 0
    assert 0.02 < found.of_bound < 0.5
    assert found.of_half < 1.001 * found.of_bound
    assert found.std == pytest.approx(found.law, rel=within)


def test_a_result_that_is_off_by_one_is_a_step_away() -> None:
    exact = torch.tensor([[0, 5, -3, 2**26 - 1]])
    step = SEAL.modulus / 2**SEAL.bits
    phases = torch.tensor([[round(m * step) for m in exact[0].tolist()]]) % SEAL.modulus
    assert distance(phases, exact).abs().max() < 0.51  # the phases are rounded
    assert torch.allclose(distance(phases, exact + 1).abs(), torch.full((1, 4), step, dtype=torch.float64))


def test_outputs_that_share_a_polynomial_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their noise adds up, so that rows that are small enough alone give wrong results together."""
    q, _ = operands(2, 2, 1)
    weight = torch.full((300, 2), LIMIT // 2)
    assert Packing.cheapest(2, 2, 300, SIZE).outputs == 300
    with pytest.raises(
        ValueError, match=r"rows 0 to 299 of the weight share a polynomial, and their squares sum to 4.7\de\+13: exp"
    ):
        product(q, weight, outputs=300)
    monkeypatch.setattr(seal_backend, "check_noise", lambda *_: None)
    half = 1 << SEAL.bits - 1
    assert not torch.equal(product(q, weight, outputs=300), (q @ weight.T + half) % (2 * half) - half)


def test_groups_are_those_of_the_packing_and_the_bound_is_met_exactly() -> None:
    assert 7.3e10 < SEAL.largest_squares(LIMIT) < SEAL.largest_squares(0) < 7.8e10
    weight = torch.zeros(7, 4, dtype=torch.int64)
    weight[3:5, 0] = LIMIT // 2  # together at the limit of a single row
    check_noise(weight, 4, SEAL)
    weight[5:, 0] = LIMIT // 2
    with pytest.raises(ValueError, match="rows 4 to 6 of the weight share a polynomial"):
        check_noise(weight, 4, SEAL)
    check_noise(weight, 1, SEAL)
    check_noise(weight[:0], 4, SEAL)


@pytest.mark.parametrize("features", [1, 64, 512, 2048, 4112])
def test_no_weight_of_a_compiled_model_is_refused(features: int) -> None:
    """The range of results, which compiling checks, allows no product that the bound would refuse later."""
    largest = 1 << SEAL.bits - 1
    for outputs in (64, 4096, 2**18):
        together = Packing.cheapest(1, features, outputs, SIZE).outputs
        for bits in range(2, 17):
            row = min(features << bits - 1, 2 * largest // ((1 << bits) - 1), LIMIT)
            assert together * row << bits - 1 <= SEAL.largest_squares(row), (outputs, bits)
