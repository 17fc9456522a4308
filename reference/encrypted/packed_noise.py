"""The parameters of products packed by tokens, and the bound of the noise in their results."""

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass

import torch
from torch import Tensor

LAYOUT = 2  # of the coefficients in messages; another layout is another fingerprint
SAMPLED = 21
"""The largest error in a fresh ciphertext: the library's sampler subtracts 21 random bits from 21."""
FAILURE_BITS = 128
"""Noise of several outputs in one polynomial reaches a result with a probability of at most 2^-128."""


@dataclass(frozen=True)
class PackedParameters:
    """The parameters of `SealBackend`.

    Ciphertexts are pairs of polynomials of n coefficients modulo a prime q; plaintexts are modulo 2^bits. A result is
    sent without the lowest `dropped` bits of its two polynomials.

    Source: the scheme BFV (Fan and Vercauteren 2012) in Microsoft SEAL 4.4. n = 2048 and 52 bits of q are secure at 128
        bits against classical attacks by both tables: 54 bits in that of the standard of 2018, which the library
        enforces, and 53 in that of the guidelines of 2024.
    """

    name: str = "seal"
    polynomial_size: int = 2048
    modulus: int = 4503599627366401
    bits: int = 27
    dropped: tuple[int, int] = (20, 12)
    secure: bool = True

    def fingerprint(self) -> bytes:
        """16 bytes that depend on every parameter except the name."""
        numbers = {k: v for k, v in dataclasses.asdict(self).items() if k != "name"} | {"layout": LAYOUT}
        return hashlib.sha256(json.dumps(numbers, sort_keys=True).encode()).digest()[:16]

    @property
    def room(self) -> float:
        """The room for the errors of fresh ciphertexts in half a step of the plaintext, next to the dropped bits.

        ``q / 2^(bits+1) - 2^(D0-1) - n·2^(D1-1)``, as the key is ternary.
        """
        first, second = (1 << bits - 1 for bits in self.dropped)
        half: float = self.modulus / (1 << self.bits + 1)
        return half - first - self.polynomial_size * second

    @property
    def largest_row(self) -> int:
        """The most that Σ_k |W[n, k]| may be, so that no noise reaches a result of its own polynomial.

        ``21.5·Σ|W| < room``: a fresh ciphertext is off by at most 21, its plaintext's rounding by 1/2.
        """
        return int(self.room / (SAMPLED + 0.5))

    def largest_squares(self, row: int) -> float:
        """The most that Σ W² may be over outputs that share a polynomial, whose rows sum to at most `row`.

        ``2·exp(-T² / (21·Σ W²)) <= 2^-128`` for the room T that the rounding of plaintexts leaves. Each error is a
        sum of 42 random bits, half of them negated, and a coefficient adds up no error twice.

        Source: Hoeffding (1963), probability inequalities for sums of bounded random variables.
        """
        return (self.room - row / 2) ** 2 / (SAMPLED * (FAILURE_BITS + 1) * math.log(2))


SEAL = PackedParameters()


def check_noise(weight: Tensor, outputs: int, parameters: PackedParameters) -> None:
    """Refuse a weight with which noise could reach a result.

    Args:
        weight: int64 [N, K].   outputs: the rows, one after another, whose results share a polynomial, and whose noise
            adds up there.
    Raises:
        ValueError: naming the rows.
    """
    if not len(weight):
        return
    sums, limit = weight.abs().sum(dim=1), parameters.largest_row
    largest = int(sums.max())
    if largest > limit:
        raise ValueError(
            f"row {int(sums.argmax())} of the weight sums to {largest} in absolute values: expected at most {limit}, "
            f"so that no noise reaches a result; lower n_bits, or the number of input features"
        )
    if outputs == 1:
        return
    squares = weight.double().square().sum(dim=1)
    most = parameters.largest_squares(largest)
    parts = zip(torch.split(sums, outputs), torch.split(squares, outputs), strict=True)
    for at, (total, square) in enumerate(parts):
        together, found = int(total.sum()), float(square.sum())
        if SAMPLED * together > parameters.room - largest / 2 and found > most:
            first = at * outputs
            raise ValueError(
                f"rows {first} to {first + len(total) - 1} of the weight share a polynomial, and their squares sum to "
                f"{found:.3g}: expected at most {most:.3g}, so that no noise reaches a result; lower n_bits, or send "
                f"more rows at once"
            )
