"""nf4 and fp4 by a table of 256 pairs: a byte holds the codes of two neighbours, whose values are written at once."""

import functools
import math

import torch
from torch import Tensor

from optimized.packed.code_matrix import CodeMatrix, looked_up
from reference.packed.dynamic_map import BLOCK, dynamic_map
from reference.packed.format import Fields, Options, Shape
from reference.packed.four_bit_tables import FP4, NF4

TABLES = {"nf4": NF4, "fp4": FP4}


def why_not_tiled(shape: Shape, options: Options) -> str | None:
    """The reason why blocks of these sizes have no table of pairs, or None."""
    block = options["block_size"]
    return f"blocks of {block} elements begin within a byte" if block % 2 and math.prod(shape) > block else None


def code_matrix(name: str, fields: Fields, shape: Shape, options: Options) -> CodeMatrix:
    """The codes as [N, K/2] bytes if blocks do not cross rows, else as [blocks, block_size/2], without a ragged end."""
    (n, k), block = shape, options["block_size"]
    whole_rows = k % block == 0
    rows, columns = (n, k) if whole_rows else (math.prod(shape) // block, block)
    codes, table = fields["codes"].flatten(), pairs(name, fields["codes"].device)
    absmax = decoded_absmax(fields) if options["nested"] else fields["absmax"]
    rest, tail = math.prod(shape) - rows * columns, None
    if rest:
        last = codes[rows * columns // 2 :].int()
        tail = table.index_select(0, last).view(torch.float32)[:rest] * absmax[-1]
        absmax, codes = absmax[:-1], codes[: rows * columns // 2]
    codes, scale = codes.view(rows, columns // 2), absmax.reshape(rows, columns // block)

    def numbers(of_rows: slice, of_columns: slice, out: Tensor) -> None:
        looked_up(codes[of_rows, of_columns.start // 2 : of_columns.stop // 2], table, out)

    holds = "Ŵ" if whole_rows else "flat"
    return CodeMatrix((rows, columns), numbers, scale, column_step=2, tail=tail, holds=holds)


def decoded_absmax(fields: Fields) -> Tensor:
    """``D[q]·absmax2 + offset`` [B], float32, as in the reference."""
    codes = fields["absmax_codes"]
    absmax2 = fields["absmax2"].repeat_interleave(BLOCK)[: codes.numel()]
    return _dynamic_map(codes.device).index_select(0, codes.int()).mul_(absmax2).add_(fields["offset"])


@functools.cache
def pairs(name: str, device: torch.device) -> Tensor:
    """The values of the high and of the low four bits of each byte: float32 [256, 2] as int64 [256]."""
    values = torch.tensor(TABLES[name], device=device)
    byte = torch.arange(256, device=device)
    return torch.stack([values[byte >> 4], values[byte & 15]], 1).view(torch.int64).flatten()


@functools.cache
def _dynamic_map(device: torch.device) -> Tensor:
    return dynamic_map().to(device)
