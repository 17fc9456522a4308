"""The noise of encrypted products: each term of the noise law against real encryption, the simulation, the range check.

Variances are compared at five standard deviations. With the skewness of χ² at 500 degrees of freedom, a false alarm
occurs at most once in 10^5 runs. `python -m tests.campaigns.noise_law` measures more sharply and takes longer.
"""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from reference.encrypted.encryption import noise_of
from reference.encrypted.noise import EXACT, FAST, TOY, EncryptionParameters, check_range, noise_std, simulate, wrap
from tests.campaigns import noise_law

KEYS = 4
ROWS = 500

# Each parameter set makes one term of the law far larger than the sum of the others. `spread` is the relative standard
# deviation of the variance between keys: it comes from the number of ones in a binary key, or from the few noise
# values in the packing key.
RESULTS = dataclasses.replace(TOY, bits_out=26)
DIGITS = dataclasses.replace(TOY, levels=2, base_log=6)
PACKING = dataclasses.replace(TOY, bits=40, bits_out=60, levels=4, base_log=13)
INPUTS = dataclasses.replace(TOY, bits_in=20)


@pytest.mark.parametrize(
    ("parameters", "spread", "expected"),
    [
        pytest.param(RESULTS, 1 / 16, 3.279 * 2, id="results"),
        pytest.param(DIGITS, 1 / 16, 3.279 * 2**15, id="digits"),
        pytest.param(PACKING, math.sqrt(2 / 1024), 236.74, id="packing"),
        pytest.param(INPUTS, 0, 2**7 / math.sqrt(12) * 100 * math.sqrt(8), id="inputs"),
    ],
)
def test_each_term_of_the_law_agrees_with_real_encryption(
    parameters: EncryptionParameters, spread: float, expected: float
) -> None:
    weight = torch.tensor([[100, -100] * 4])
    law = float(noise_std(parameters, weight)[0])
    assert law == pytest.approx(expected, rel=0.01)
    found = noise_law.errors(parameters, weight, ROWS, KEYS)[:, 0]
    assert abs(noise_law.variance_score(found, law, spread / math.sqrt(KEYS))) < 5
    assert abs(float(found.double().mean())) < 5 * law / math.sqrt(ROWS)


def test_the_noise_is_gaussian() -> None:
    weight = torch.tensor([[100, -100]])
    found = noise_law.errors(noise_law.TOY_FAST, weight, 1000, 8)[:, 0]
    assert noise_law.kolmogorov(found, float(noise_std(noise_law.TOY_FAST, weight)[0])) > 1e-5


def test_packing_noise_depends_only_on_the_columns_in_the_same_ciphertext() -> None:
    packing = dataclasses.replace(PACKING, polynomial_size=128)
    law = noise_std(packing, torch.zeros(129, 1, dtype=torch.int64))
    assert float(law[0] / law[128]) == pytest.approx(math.sqrt(128), rel=1e-6)
    assert torch.equal(law[:128], law[:1].expand(128))
    found = noise_law.errors(packing, torch.ones(129, 1, dtype=torch.int64), 12, 1).double()
    # 12 errors in the last column: a factor of 4 (16 in variance) either way has probability below 10^-5 for χ² of 12
    assert law[128] / 4 < found[:, 128].square().mean().sqrt() < law[128] * 4
    assert law[0] / 2 < found[:, :128].square().mean().sqrt() < law[0] * 2


@pytest.mark.parametrize(
    ("parameters", "columns", "sigma"),
    [(FAST, 1, 19.06), (EXACT, 512, 0.048), (EXACT, 2048, 0.074)],
    ids=["fast", "exact 512", "exact 2048"],
)
def test_the_parameter_sets_have_their_documented_noise(
    parameters: EncryptionParameters, columns: int, sigma: float
) -> None:
    weight = torch.full((columns, 64), 127)
    assert float(noise_std(parameters, weight).max()) == pytest.approx(sigma, rel=0.02)


def test_zero_columns_have_no_noise_and_a_vector_is_refused() -> None:
    assert noise_std(FAST, torch.empty(0, 5, dtype=torch.int64)).shape == (0,)
    with pytest.raises(ValueError, match=r"weight is \[5\]: expected \[N, K\]"):
        noise_std(FAST, torch.zeros(5, dtype=torch.int64))


@pytest.mark.parametrize("bits", [1, 3, 27, 62])
def test_wrap_gives_the_centred_residue(bits: int) -> None:
    half = 2 ** (bits - 1)
    numbers = [0, 1, -1, half - 1, half, half + 1, -half, -half - 1, 3 * half - 1, 2**63 - 1, -(2**63)]
    wrapped = wrap(torch.tensor(numbers), bits).tolist()
    assert wrapped == [(v + half) % (2 * half) - half for v in numbers]


def test_simulation_without_noise_is_the_wrapped_product() -> None:
    raw = torch.tensor([[2**53 + 1, -5, 2**26], [0, 2**26 - 1, -(2**26) - 1]])
    assert torch.equal(simulate(raw, torch.zeros(3, dtype=torch.float64), 27), wrap(raw, 27))
    assert simulate(raw[:0], torch.ones(3, dtype=torch.float64), 27).shape == (0, 3)


def test_simulated_noise_has_the_given_deviation_and_correlation() -> None:
    std = torch.tensor([3.0, 20.0], dtype=torch.float64)
    raw = torch.tensor([[5, -7]]).expand(20_000, 2)
    noise = (simulate(raw, std, 27, torch.Generator().manual_seed(0)) - raw).double()
    # rounding adds 1/12; 2 % is 4 standard deviations, and the seed is fixed
    assert torch.allclose(noise.std(dim=0), (std**2 + 1 / 12).sqrt(), rtol=0.02)
    assert float(torch.corrcoef(noise.T)[0, 1]) == pytest.approx(0.5, abs=0.03)
    assert noise_law.kolmogorov(noise[:, 1], 20.0) > 1e-3
    again = simulate(raw, std, 27, torch.Generator().manual_seed(0))
    assert torch.equal(again - raw, noise.long())


def test_simulated_noise_wraps_at_the_edge_of_the_range() -> None:
    raw = torch.full((200, 1), 2**26 - 1)
    found = simulate(raw, torch.tensor([20.0], dtype=torch.float64), 27, torch.Generator().manual_seed(0))
    assert (found < 0).any()
    assert (found > 0).any()
    assert int(found.abs().max()) <= 2**26


def test_simulation_refuses_deviations_for_another_number_of_columns() -> None:
    with pytest.raises(ValueError, match=r"raw is \[2, 3\] and std \[1\]: expected \[M, N\] and \[N\]"):
        simulate(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(1), 27)


def test_the_range_check_keeps_eight_deviations_below_half_the_modulus() -> None:
    std = torch.tensor([1.0, 2.0], dtype=torch.float64)
    check_range(2**26 - 17, std, 27)
    with pytest.raises(ValueError, match=r"n_bits = 8 and 512 features allow products up to 67108848, .*lower n_bits"):
        check_range(2**26 - 16, std, 27, n_bits=8, features=512)
    with pytest.raises(ValueError, match="the operands allow"):
        check_range(2**26, torch.empty(0, dtype=torch.float64), 27)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"polynomial_size": 300}, "polynomial_size = 300: expected a power of two"),
        ({"polynomial_size": 0}, "polynomial_size = 0"),
        ({"bits": 63}, "bits = 63: expected 1 to 62"),
        ({"bits_in": 64}, "bits_in = 64: expected 1 to 63"),
        ({"bits_out": 0}, "bits_out = 0: expected 1 to 63"),
        ({"levels": 8, "base_log": 8}, "levels·base_log = 8·8 = 64: expected at most 63"),
    ],
)
def test_parameters_out_of_range_are_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(EXACT, **change)


def test_the_largest_parameters_still_encrypt() -> None:
    largest = dataclasses.replace(TOY, bits_in=63, bits_out=63, levels=9, base_log=7)
    assert not noise_law.errors(largest, torch.tensor([[3, -4]]), 5, 1).any()


def test_every_parameter_except_the_name_changes_the_fingerprint() -> None:
    changes = [
        {"polynomial_size": 1024},
        {"bits": 26},
        {"bits_in": 59},
        {"bits_out": 44},
        {"levels": 4},
        {"base_log": 6},
        {"secure": False},
    ]
    prints = [EXACT.fingerprint(), *(dataclasses.replace(EXACT, **change).fingerprint() for change in changes)]
    assert len(set(prints)) == len(prints)
    assert dataclasses.replace(EXACT, name="mine").fingerprint() == EXACT.fingerprint()


def test_the_toy_set_is_named_insecure() -> None:
    assert "insecure" in TOY.name
    assert (EXACT.secure, FAST.secure, TOY.secure) == (True, True, False)


def test_a_backend_without_a_noise_law_is_named() -> None:
    class Silent:
        parameters = object()

    with pytest.raises(TypeError, match="Silent has no noise_std, and its parameters, object, have no noise law"):
        noise_of(Silent(), torch.ones(1, 2, dtype=torch.int64))  # type: ignore[arg-type]
