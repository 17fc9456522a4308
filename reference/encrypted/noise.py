"""The parameter sets of the encryption, the noise in its integer products, and the check of their range."""

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

STANDARD_DEVIATION = 2.84526747960191e-15
"""The deviation of the noise in fresh ciphertexts and keys, relative to the modulus 2^64. It is the same in every set,
and makes polynomials of 2048 coefficients secure."""


@dataclass(frozen=True)
class EncryptionParameters:
    """The parameters that decide the precision, the cost and the security of an encrypted product.

    Integers are modulo 2^bits. Ciphertexts of inputs are sent with bits_in bits per coefficient, ciphertexts of
    results with bits_out. The key that packs a row of results into a few ciphertexts splits coefficients into
    `levels` digits of base_log bits.

    Raises:
        ValueError: naming a number that is out of range.
    Source: `MatmulCryptoParameters` of concrete-ml-extensions.
    """

    name: str
    polynomial_size: int
    bits: int
    bits_in: int
    bits_out: int
    levels: int
    base_log: int
    secure: bool

    def __post_init__(self) -> None:
        size = self.polynomial_size
        if size < 2 or size & (size - 1):
            raise ValueError(f"polynomial_size = {size}: expected a power of two, at least 2")
        for field, most in (("bits", 62), ("bits_in", 63), ("bits_out", 63), ("levels", 63), ("base_log", 63)):
            value = getattr(self, field)
            if not 1 <= value <= most:
                raise ValueError(f"{field} = {value}: expected 1 to {most}")
        if self.levels * self.base_log > 63:  # with 64 bits the library gives random results
            product = f"{self.levels}·{self.base_log} = {self.levels * self.base_log}"
            raise ValueError(f"levels·base_log = {product}: expected at most 63")

    def fingerprint(self) -> bytes:
        """16 bytes that depend on every parameter except the name."""
        numbers = {k: v for k, v in dataclasses.asdict(self).items() if k != "name"}
        return hashlib.sha256(json.dumps(numbers, sort_keys=True).encode()).digest()[:16]


EXACT = EncryptionParameters("exact", 2048, bits=27, bits_in=60, bits_out=45, levels=5, base_log=7, secure=True)
"""Exact results: σ is 0.05 at 512 columns, a tenth of the rounding threshold. The cost is 2.5 times that of FAST."""

FAST = EncryptionParameters("fast", 2048, bits=27, bits_in=39, bits_out=26, levels=2, base_log=14, secure=True)
"""The defaults of concrete-ml-extensions 0.2: σ is about 19."""

TOY = dataclasses.replace(EXACT, name="toy-insecure", polynomial_size=256, secure=False)
"""EXACT with insecure small polynomials, about seventy times as fast, for tests."""

PARAMETER_SETS = {"exact": EXACT, "fast": FAST, "toy": TOY}


SECURE_SIZE = 2048


def why_insecure(parameters: Any) -> str | None:
    """The reason why parameters do not hide inputs, or None: they say so, or their polynomials are too small.

    Args:
        parameters: `EncryptionParameters`, or those of another backend.
    """
    if not parameters.secure:
        return f"the parameter set {parameters.name} is not secure"
    size = getattr(parameters, "polynomial_size", SECURE_SIZE)
    if size < SECURE_SIZE:
        return (
            f"the parameter set {parameters.name} is called secure, but its polynomials have {size} coefficients: "
            f"its noise needs {SECURE_SIZE}"
        )
    return None


def noise_std(parameters: EncryptionParameters, weight: Tensor) -> Tensor:
    """The standard deviation of an encrypted product's noise, per column, before rounding to integers.

    ``σ² = (ρ·2^(b-m_out))² + (ρ·2^(b-L·B))² + n·(s·2^b·√(L·P·4^B/12))² + (2^(b-m_in)/√12·‖w‖₂)²``, with
    ``ρ = √((1+P/2)/12)`` for a polynomial size P; n is the number of columns in the column's ciphertext: P, or
    the remainder in the last ciphertext. The terms are the rounding of results to m_out bits and of
    coefficients to L digits of B bits, both multiplied by a binary key; the noise s of the packing key; and
    the rounding of inputs to m_in bits, multiplied by the weight's column w. The formula omits the noise s
    of fresh ciphertexts: multiplied by w it is ``s·2^b·‖w‖₂``, below 0.003 for every weight that `check_range` accepts
    at b = 27.

    The noise is Gaussian and does not depend on the inputs. The formula holds for the average key: the ρ of a single
    key depends on its random number of ones, and differs by about 1/√(4P) (1.1 % at 2048, 3 % at the toy set's 256).

    Args:
        weight: int64 [N, K].
    Returns:
        float64 [N].
    Raises:
        ValueError: if the weight is not a matrix.
    Source: Chillotti et al., TFHE (2020), sections 3 and 4, for modulus switching and key switching of
        binary keys; checked against measurements (`python -m tests.campaigns.noise_law`).
    """
    if weight.ndim != 2:
        raise ValueError(f"weight is {list(weight.shape)}: expected [N, K]")
    p, size, bits = parameters, parameters.polynomial_size, parameters.bits
    rounding = math.sqrt((1 + size / 2) / 12)
    results = rounding * 2.0 ** (bits - p.bits_out)
    digits = rounding * 2.0 ** (bits - p.levels * p.base_log)
    packing = STANDARD_DEVIATION * 2.0**bits * math.sqrt(p.levels * size * 4.0**p.base_log / 12)
    inputs = 2.0 ** (bits - p.bits_in) / math.sqrt(12) * weight.double().norm(dim=1)
    columns = torch.arange(len(weight), device=weight.device)
    sharing = (len(weight) - columns // size * size).clamp(max=size)
    variance: Tensor = results**2 + digits**2 + sharing * packing**2 + inputs**2
    return variance.sqrt()


def wrap(raw: Tensor, bits: int) -> Tensor:
    """The residue of integers modulo 2^bits in [-2^(bits-1), 2^(bits-1)).

    Args:
        raw: int64, any shape.
        bits: 1 to 62.
    Returns:
        int64, in the shape of raw.
    """
    half = 1 << (bits - 1)
    # An overflow of the sum is off by 2^64, which does not change the residue.
    return (raw + half).remainder(2 * half) - half


def simulate(raw: Tensor, std: Tensor, bits: int, generator: torch.Generator | None = None) -> Tensor:
    """The decrypted result of a product: ``wrap(round(raw + ε))`` with Gaussian ε of deviation std.

    Any two columns of a row have a correlation of one half: ``ε_ij = σ_j·(u_i + v_ij)/√2``. (In real encryption the
    correlation falls from one half between neighbours to minus one half across a whole polynomial.) Different
    rows are independent.

    Args:
        raw: int64 [M, N], the exact integer product.
        std: float64 [N], from `noise_std`; with zeros the result is the wrapped product.
        bits: 1 to 62.
        generator: a generator on the device of raw.
    Returns:
        int64 [M, N].
    Raises:
        ValueError: if std does not have one entry per column.
    """
    if raw.ndim != 2 or std.shape != raw.shape[1:]:
        raise ValueError(f"raw is {list(raw.shape)} and std {list(std.shape)}: expected [M, N] and [N]")
    rows = torch.randn(len(raw), 1, dtype=torch.float64, device=raw.device, generator=generator)
    cells = torch.randn(raw.shape, dtype=torch.float64, device=raw.device, generator=generator)
    # Only the noise is rounded: raw need not be exact in float64.
    return wrap(raw + (std * (rows + cells) / math.sqrt(2)).round().long(), bits)


def check_range(
    largest: int, std: Tensor, bits: int, *, n_bits: int | None = None, features: int | None = None
) -> None:
    """Refuse products that could leave the range: ``largest + 8·max σ`` must be less than ``2^(bits-1)``.

    Larger results wrap silently. The noise exceeds 8σ once in 10^15 results.

    Args:
        largest: the largest magnitude a product can have.
        std: float64 [N], from `noise_std`.
        n_bits, features: properties of the quantised operands, for the message.
    Raises:
        ValueError: naming the limit and the parameters to lower.
    """
    noise = 8 * float(std.max()) if std.numel() else 0.0
    limit = 1 << (bits - 1)
    if not largest + noise < limit:
        about = [f"n_bits = {n_bits}"] * (n_bits is not None) + [f"{features} features"] * (features is not None)
        raise ValueError(
            f"{' and '.join(about) or 'the operands'} allow products up to {largest}, with noise up to {noise:.3g}, "
            f"but the encryption holds less than 2^{bits - 1} = {limit}: lower n_bits, or the number of input features"
        )


def checked_position(position: Any) -> tuple[int, int]:
    """A position of the noise; refuse one that is not two ints of at least 0."""
    try:
        seed, drawn = position
    except (TypeError, ValueError):
        seed = drawn = None
    if any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in (seed, drawn)):
        raise ValueError(f"noise_position = {position!r}: expected a seed and a number of products, ints of at least 0")
    return seed, drawn
