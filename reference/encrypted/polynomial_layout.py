"""The place of a matrix's elements in polynomials: rows side by side, several features up, several outputs down."""

import struct
from dataclasses import dataclass

import torch
from torch import Tensor

from .modular import shifted

UP, FIRST, SECOND = 7, 4, 5
"""Bytes for each coefficient: of ciphertexts going up, and of the first and the second polynomial coming down."""

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
            most = size // (rows * features)
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

    def by_feature(self, polynomials: Tensor, columns: int) -> Tensor:
        """One polynomial for each feature, its rows from ``X^0`` on: [*, polynomials, n] → [*, K, n], of any dtype."""
        if self.features == 1:
            return polynomials
        moved = [shifted(polynomials, -i * self.rows) for i in range(self.features)]
        return torch.stack(moved, dim=-2).flatten(-3, -2)[..., :columns, :]

    def joined(self, products: Tensor) -> Tensor:
        """The sums of the outputs that share a polynomial: int64 [N, n] → [⌈N/outputs⌉, n]."""
        if self.outputs == 1:
            return products
        found = products.new_zeros(-(-len(products) // self.outputs), self.size)
        for j in range(self.outputs):
            part = products[j :: self.outputs]
            found[: len(part)] += shifted(part, j * self.features * self.rows)
        return found

    def around(self, by_feature: Tensor) -> Tensor:
        """The coefficients from which `joined_places` sums: [*, n] → [*, (2·outputs - 1)·rows], of the same dtype."""
        starts = torch.arange(1 - self.outputs, self.outputs) * self.features * self.rows
        at = (starts[:, None] + torch.arange(self.rows)).flatten()
        found = by_feature[..., (at % self.size).to(by_feature.device)]
        found[..., : int((at < 0).sum())].neg_()
        return found

    def joined_places(self, products: Tensor) -> Tensor:
        """What `joined` has at `places`, from the products of `around`: int64 [N, …] → [⌈N/outputs⌉, outputs·rows]."""
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
