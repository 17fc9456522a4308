"""Exact integer products modulo the prime of the ciphertexts, with int8 or floating-point matrix products."""

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..torch_internals import int8_product

BYTES = 7  # of a coefficient
SUMMED = 1 << 9  # results of a product that may be added without an overflow
LARGEST = 600_000
"""The most that the absolute values in a row of the weight may sum to."""

Planes = NDArray[np.uint8]
"""Coefficients as bytes, [*, 7, n]: one plane has byte j of all of them."""


class Radix(Protocol):
    """A way to cut coefficients into digits whose products with a weight are exact."""

    def digits(self, planes: Planes) -> Tensor:
        """The digits of coefficients, on the CPU: [*, 7, n] → [*, digits, n]."""
        ...

    def product(self, weight: Tensor, digits: Tensor, modulus: int) -> Tensor:
        """Integers congruent to ``W C`` modulo q, exactly, and not reduced.

        Args:
            weight: int64 [N, K], with Σ_k |W[n, k]| <= `LARGEST` in every row.
            digits: [K, digits, n], on the device of the weight.
            modulus: q, from 2^52 - 2^26 to 2^52.
        Returns:
            int64 [N, n], of magnitude below 2^53.
        """
        ...


class Limbs:
    """A `Radix` of two limbs, ``c = h·2^26 + l`` with h below 2^30, in float64 products, on any device."""

    def digits(self, planes: Planes) -> Tensor:
        """See `Radix`."""
        at = [planes[..., j, :].astype(np.uint32) for j in range(BYTES)]
        found = np.empty((*planes.shape[:-2], 2, planes.shape[-1]))
        found[..., 0, :] = at[3] >> 2 | at[4] << 6 | at[5] << 14 | at[6] << 22
        found[..., 1, :] = at[0] | at[1] << 8 | at[2] << 16 | (at[3] & 3) << 24
        return torch.from_numpy(found)

    def product(self, weight: Tensor, digits: Tensor, modulus: int) -> Tensor:
        """See `Radix`: the sums are below 2^50, which float64 holds exactly."""
        products = torch.mm(weight.to(digits.dtype), digits.flatten(1)).view(len(weight), *digits.shape[1:])
        return _joined(products[:, 0], products[:, 1].contiguous(), 26, modulus).long()


class Bytes:
    """A `Radix` of seven bytes, ``c = Σ_j (d_j + 128)·2^(8j)``, in int8 products with int32 sums."""

    def digits(self, planes: Planes) -> Tensor:
        """See `Radix`."""
        return torch.from_numpy(np.bitwise_xor(planes, 128).view(np.int8))

    def product(self, weight: Tensor, digits: Tensor, modulus: int) -> Tensor:
        """See `Radix`: the sums are below 2^27, and those of three or four neighbours, in float64, below 2^51."""
        products = int8_product(weight.to(torch.int8), digits.flatten(1)).view(len(weight), *digits.shape[1:])
        high, low = products[:, 6].double(), products[:, 3].double()
        for j in (5, 4):
            high.mul_(256).add_(products[:, j])
        for j in (2, 1, 0):
            low.mul_(256).add_(products[:, j])
        return _joined(high, low, 32, modulus).add_(self._offsets(weight, modulus)).long()

    def _offsets(self, weight: Tensor, modulus: int) -> Tensor:
        """What the 128 in each byte adds to a row's sums, from -q/2 to q/2: float64 [N, 1]."""
        constant = 128 * sum(256**j for j in range(BYTES))
        found = [(total * constant + modulus // 2) % modulus - modulus // 2 for total in weight.sum(1).tolist()]
        return torch.tensor(found, dtype=torch.float64, device=weight.device)[:, None]


def radix_for(weight: Tensor) -> Radix:
    """The fastest exact `Radix` for a weight, int64 [N, K]."""
    return Bytes() if why_not_bytes(weight) is None else Limbs()


def why_not_bytes(weight: Tensor) -> str | None:
    """The reason why `Bytes` is not exact for a weight, int64 [N, K], or is not here; None if it is."""
    if weight.device.type != "cpu" or not has_vnni():
        # without VNNI a CPU adds pairs of products in saturating int16
        return f"this {weight.device.type} has no int8 dot product with int32 sums"
    if weight.shape[1] == 1:
        return "torch's int8 product on the CPU may read a matrix of one feature wrongly"
    if weight.numel() and not -128 <= int(weight.min()) <= int(weight.max()) <= 127:
        return "the weight does not fit int8"
    return None


def has_vnni() -> bool:
    """Whether this CPU has int8 dot products with int32 sums."""
    capabilities: Any = getattr(torch.cpu, "get_capabilities", dict)
    return bool(capabilities().get("avx512_vnni"))


def check(weight: Tensor, modulus: int) -> None:
    """Refuse a weight or a modulus for which a `Radix` is not exact.

    Raises:
        ValueError: naming the largest row, or the modulus.
    """
    if not 0 <= (1 << 52) - modulus <= 1 << 26:
        raise ValueError(f"modulus = {modulus}: expected 2^52 - 2^26 to 2^52")
    largest = int(weight.abs().sum(dim=1).max()) if weight.numel() else 0
    if largest > LARGEST:
        raise ValueError(f"a row of the weight sums to {largest} in absolute values: expected at most {LARGEST}")


def written(coefficients: NDArray[np.uint64]) -> Planes:
    """The coefficients [*, n] below 2^56 as bytes."""
    return np.moveaxis(coefficients[..., None].view(np.uint8)[..., :BYTES], -1, -2)


def negated(planes: Planes, modulus: int) -> Planes:
    """The bytes of ``-c`` modulo q."""
    held = np.zeros((*planes.shape[:-2], planes.shape[-1], 8), np.uint8)
    held[..., :BYTES] = np.moveaxis(planes, -2, -1)
    return written(modulus - held.view(np.uint64)[..., 0] % np.uint64(modulus))


def _joined(high: Tensor, low: Tensor, bits: int, modulus: int) -> Tensor:
    """Integers congruent to ``high·2^bits + low`` modulo q, as float64, in place.

    ``high·2^bits = h1·2^52 + h0·2^bits``, where ``2^52 = 2^52 - q`` modulo q. Every term and every sum is exact.
    """
    top = high.mul(2.0 ** (bits - 52)).floor_()
    low.add_(high.sub_(top, alpha=2.0 ** (52 - bits)), alpha=2.0**bits)
    return low.add_(top, alpha=(1 << 52) - modulus)
