"""Products with the numbers of a packed weight, part by part: the scratch of a product is a part of Ŵ."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from optimized.packed.code_matrix import CodeMatrix
from optimized.packed.formats import code_matrix
from reference.packed_weight import PackedWeight

TILE = 2**19
"""The elements that become numbers at once: the scales multiply them before they leave the cache. At 2048² two threads
took 1.6 ms for Ŵ in tiles of 2¹⁹ elements, 2.4 ms in tiles of 2¹⁷, because each operation waits for all threads, and
2.1 ms in one."""
PART = 2**21
"""The elements of the scratch of a product, tiles of which are multiplied at once. A product of bfloat16 with a tile
of 2¹⁹ elements took a tenth more time, and fresh memory of more than 2²² elements took more time than the numbers."""
LEAST = 256
"""The fewest features of a part of a large weight, because products of narrower matrices take longer."""
SMALL = 2**14
"""The fewest elements of a part and of a tile; above, a part is at most half of Ŵ and a tile a quarter.
With the indices into a table, int64, the scratch is then less than one Ŵ in float32."""


def dequantized(weight: PackedWeight, dtype: torch.dtype) -> Tensor:
    """Ŵ [N, K], computed in float32 and rounded once; for a weight of which `why_not_tiled` has no reason."""
    codes = code_matrix(weight)
    tiles = _Tiles(codes, dtype, dtype)
    whole = torch.empty(weight.shape, dtype=dtype, device=weight_device(weight))
    target = whole.t() if codes.holds == "Ŵᵀ" else whole.view(-1)[: math.prod(codes.shape)].view(codes.shape)
    if codes.tail is not None:
        whole.view(-1)[math.prod(codes.shape) :] = codes.tail
    tiles.write(slice(0, codes.shape[0]), slice(0, codes.shape[1]), target)
    return whole


def tiled_product(
    t: Tensor, weight: PackedWeight, dtype: torch.dtype, bias: Tensor | None = None, *, transposed: bool = False
) -> Tensor:
    """``t Ŵᵀ + b``, or ``t Ŵ`` if transposed, where Ŵ is rounded to dtype.

    Args:
        t: [M, K], or [M, N] if transposed.   bias: [N] in t's dtype, or None.
    Returns:
        a new tensor in t's dtype. The scratch is a part of Ŵ, or one Ŵ where blocks cross its rows.
    """
    codes = code_matrix(weight)
    if codes.holds == "flat":
        numbers = dequantized(weight, dtype).to(t.dtype)
        return _multiplied(t, numbers if transposed else numbers.t(), bias)
    n, k = weight.shape
    out = t.new_empty(t.shape[0], k if transposed else n)
    tiles = _Tiles(codes, dtype, t.dtype)
    by_rows = transposed == (codes.holds == "Ŵᵀ")
    for part in tiles.parts(0 if by_rows else 1):
        numbers = tiles.part(part, by_rows)
        some = None if bias is None else bias[part]
        _multiplied(t, numbers.t() if by_rows else numbers, some, out[:, part])
    return out


def _multiplied(t: Tensor, numbers: Tensor, bias: Tensor | None, out: Tensor | None = None) -> Tensor:
    return torch.mm(t, numbers, out=out) if bias is None else torch.addmm(bias, t, numbers, out=out)


def weight_device(weight: PackedWeight) -> torch.device:
    """The device of a packed weight."""
    return next(iter(weight.fields.values())).device


class _Tiles:
    """Parts of a matrix of codes as numbers of a dtype, after a rounding to `rounded`; they share their memory."""

    def __init__(self, codes: CodeMatrix, rounded: torch.dtype, dtype: torch.dtype) -> None:
        self.codes, self.rounded, self.dtype = codes, rounded, dtype
        self.scratch: dict[str, Tensor] = {}

    def parts(self, axis: int) -> Iterator[slice]:
        """The rows (axis 0) or columns (axis 1) of each part."""
        length, across = self.codes.shape[axis], self.codes.shape[1 - axis]
        part = min(PART, max(SMALL, length * across // 2))
        return self._slices(0, length, max(min(LEAST, length // 2), part // across), axis)

    def part(self, part: slice, by_rows: bool) -> Tensor:
        """Some rows or columns of the matrix as numbers, valid until the next call."""
        rows, columns = self.codes.shape
        down, across = (part, slice(0, columns)) if by_rows else (slice(0, rows), part)
        out = self._memory(self.dtype, down, across)
        self.write(down, across, out)
        return out

    def write(self, rows: slice, columns: slice, out: Tensor) -> None:
        """Write the numbers of some rows and columns to out, tile by tile."""
        share = 8 if self.codes.holds == "flat" else 4  # less beside a whole Ŵ
        tile = min(TILE, max(SMALL // 2, math.prod(self.codes.shape) // share))
        in_place = out.dtype == torch.float32 and out.is_contiguous()
        for some in self._slices(rows.start, rows.stop, tile // (columns.stop - columns.start), 0):
            of_tile = out[some.start - rows.start : some.stop - rows.start]
            wide = of_tile if in_place else self._memory(torch.float32, some, columns, "tile")
            self.codes.tile(some, columns, wide)
            if self.rounded.itemsize == 2 and self.rounded != out.dtype:
                wide.copy_(wide.to(self.rounded))
            if not in_place:
                of_tile.copy_(wide)

    def _slices(self, first: int, last: int, size: int, axis: int) -> Iterator[slice]:
        step = self.codes.steps[axis]
        size = max(step, size // step * step)
        return (slice(start, min(start + size, last)) for start in range(first, last, size))

    def _memory(self, dtype: torch.dtype, rows: slice, columns: slice, use: str = "part") -> Tensor:
        shape = rows.stop - rows.start, columns.stop - columns.start
        held = self.scratch.get(use)
        if held is None or held.numel() < math.prod(shape):
            held = self.scratch[use] = torch.empty(math.prod(shape), dtype=dtype, device=self.codes.scale.device)
        return held[: math.prod(shape)].view(shape)
