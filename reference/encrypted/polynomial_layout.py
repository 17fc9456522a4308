"""The place of a matrix's elements in polynomials: rows side by side, several features up, several outputs down."""

import struct
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .modular import BYTES

UP, FIRST, SECOND = BYTES, 4, 5
"""Bytes for each coefficient: of ciphertexts going up, and of the first and the second polynomial coming down."""

MOST_OUTPUTS = 1024
"""The most outputs that share a polynomial: their noise adds up, and so never reaches the bound of `check_noise` for
operands whose products do not leave the range."""

_HEADER = struct.Struct("<QQQ")


@dataclass(frozen=True)
class Packing:
    """The packing of a block of rows.

    Polynomial c of the inputs holds feature ``c·features + i`` of row m at ``X^(i·rows + m)``. Output ``g·outputs + j``
    of row m is at ``X^(j·features·rows + m)`` in polynomial g of the result; the powers between hold other sums, which
    nobody reads.

    Args:
        rows: the rows of a block, M.
        features: the features in one polynomial of the inputs.
        outputs: the outputs in one polynomial of the result.
        size: the number n of coefficients.
    Raises:
        ValueError: unless ``rows·features·outputs`` is from 1 to n.
    """

    rows: int
    features: int
    outputs: int
    size: int

    HEADER = _HEADER.size

    def __post_init__(self) -> None:
        product = self.rows * self.features * self.outputs
        if min(self.rows, self.features, self.outputs) < 1 or product > self.size:
            numbers = f"{self.rows}·{self.features}·{self.outputs}"
            raise ValueError(f"rows·features·outputs = {numbers} = {product}: expected 1 to {self.size}")

    @classmethod
    def cheapest(cls, rows: int, columns: int, outputs: int, size: int) -> "Packing":
        """The packing with the fewest bytes up and down for a product [rows, columns] · [columns, outputs]."""
        rows = min(max(rows, 1), size)
        found = []
        for features in range(1, min(size // rows, columns) + 1):
            most = min(size // (rows * features), MOST_OUTPUTS)
            for together in {1, max(1, min(most, outputs))}:
                found.append(cls(rows, features, together, size))
        return min(found, key=lambda each: (each.bytes_up(columns) + each.bytes_down(outputs), each.outputs))

    def bytes_up(self, columns: int) -> int:
        """The bytes of the inputs of one block."""
        return -(-columns // self.features) * 2 * self.size * UP

    def bytes_down(self, outputs: int) -> int:
        """The bytes of the result of one block."""
        return -(-outputs // self.outputs) * (self.rows * self.outputs * FIRST + self.size * SECOND)

    def header(self) -> bytes:
        """The packing as bytes."""
        return _HEADER.pack(self.rows, self.features, self.outputs)

    @classmethod
    def read(cls, header: bytes, size: int) -> "Packing":
        """The packing from `header`.

        Raises:
            ValueError: if the bytes are no header of a packing.
        """
        if len(header) != _HEADER.size:
            raise ValueError(f"the packing came as {len(header)} bytes: expected {_HEADER.size}")
        rows, features, outputs = _HEADER.unpack(header)
        return cls(rows, features, outputs, size)

    def inputs(self, q: Tensor) -> Tensor:
        """The polynomials of a block of inputs: q int64 [M, K], at most `rows` rows, as int64 [⌈K/features⌉, n]."""
        rows, columns = q.shape
        polynomials = -(-columns // self.features)
        held = q.new_zeros(polynomials * self.features, self.rows)
        held[:columns, :rows] = q.T
        found = q.new_zeros(polynomials, self.size)
        found[:, : self.features * self.rows] = held.view(polynomials, -1)
        return found

    def operand(self, digits: Tensor, negated: Callable[[], Tensor], columns: int) -> Tensor:
        """The coefficients that a product needs: first those for `joined_places`, then those for `joined`.

        Each feature has its own polynomials, its rows from ``X^0`` on.

        Args:
            digits: the digits of both polynomials of each ciphertext, [polynomials, 2, digits, n], of any dtype.
            negated: makes the digits of the negated coefficients, of the same shape.
            columns: the features K.
        Returns:
            [K, digits, `places_read` + n].
        """
        first, second, cut = digits[:, 0], digits[:, 1], self.places_read
        if self.features == self.outputs == 1:
            return torch.cat([first[..., :cut], second], -1)
        minus = negated()
        polynomials, number, size = first.shape
        found = digits.new_empty(polynomials, self.features, number, cut + size)
        around = torch.cat([minus[:, 0], first], -1)[..., size - (self.outputs - 1) * self.features * self.rows :]
        around = around[..., : cut * self.features].reshape(polynomials, number, -1, self.features, self.rows)
        found[..., :cut].view(*found.shape[:-1], -1, self.rows).copy_(around.permute(0, 3, 1, 2, 4))
        moved = torch.cat([second, minus[:, 1]], -1).unfold(-1, size, self.rows)[..., : self.features, :]
        found[..., cut:] = moved.transpose(1, 2)
        return found.flatten(0, 1)[:columns]

    @property
    def places_read(self) -> int:
        """The number of coefficients from which `joined_places` sums."""
        return (2 * self.outputs - 1) * self.rows

    def joined(self, products: Tensor) -> Tensor:
        """The sums of the outputs that share a polynomial: int64 [N, n] → [⌈N/outputs⌉, n]."""
        if self.outputs == 1:
            return products
        found = products.new_zeros(-(-len(products) // self.outputs), self.size)
        for j in range(self.outputs):
            part = products[j :: self.outputs]
            found[: len(part)] += shifted(part, j * self.features * self.rows)
        return found

    def joined_places(self, products: Tensor) -> Tensor:
        """What `joined` has at `places`: int64 [N, `places_read`] → [⌈N/outputs⌉, outputs·rows]."""
        products = products.reshape(len(products), -1, self.rows)
        found = products.new_zeros(-(-len(products) // self.outputs), self.outputs, self.rows)
        for j in range(self.outputs):
            part = products[j :: self.outputs, self.outputs - 1 - j : 2 * self.outputs - 1 - j]
            found[: len(part)] += part
        return found.flatten(1)

    def places(self) -> Tensor:
        """The powers that hold the results: int64 [outputs, rows]."""
        starts = torch.arange(self.outputs) * self.features * self.rows
        return starts[:, None] + torch.arange(self.rows)

    def outcome(self, values: Tensor, rows: int, outputs: int) -> Tensor:
        """The result from the values at `places`, int64 [⌈N/outputs⌉, outputs, rows]: int64 [M, N]."""
        return values.flatten(0, 1)[:outputs, :rows].T.contiguous()


def shifted(polynomials: Tensor, by: int) -> Tensor:
    """``X^by · p`` modulo ``X^n + 1``: a rotation of the coefficients, those that pass the end negated.

    Args:
        polynomials: [*, n].   by: from 0 to n.
    Returns:
        [*, n], of the same dtype.
    """
    found = polynomials.roll(by, dims=-1)
    found[..., :by].neg_()
    return found
