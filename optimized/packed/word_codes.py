"""GPTQ and AWQ, whose int32 hold eight codes, and HQQ, whose bytes hold a code of each half of the rows."""

import torch
from torch import Tensor

from optimized.packed.code_matrix import CodeMatrix
from reference.packed.format import Fields, Options, Shape
from reference.packed.gptq_awq import AWQ_ORDER, nibbles


def gptq(fields: Fields, shape: Shape, options: Options) -> CodeMatrix:
    """Ŵᵀ [K, N]; a row of int32 holds eight rows of it."""
    (n, k), words = shape, fields["qweight"]

    def numbers(rows: slice, columns: slice, out: Tensor) -> None:
        part, eight = words[rows.start // 8 : rows.stop // 8, columns], out.view(-1, 8, out.shape[1])
        for i in range(8):
            eight[:, i].copy_(part >> 4 * i & 15)

    zero = nibbles(fields["qzeros"]).flatten(1) + (1 if options["version"] == 1 else 0)
    scale_row = fields["g_idx"].long()
    return CodeMatrix(
        (k, n), numbers, fields["scales"].float(), zero.float(), scale_row=scale_row, row_step=8, holds="Ŵᵀ"
    )


def awq(fields: Fields, shape: Shape, options: Options) -> CodeMatrix:
    """Ŵᵀ [K, N]; an int32 holds eight columns of it, in AWQ's order."""
    (n, k), words = shape, fields["qweight"]

    def numbers(rows: slice, columns: slice, out: Tensor) -> None:
        part, eight = words[rows, columns.start // 8 : columns.stop // 8], out.view(out.shape[0], -1, 8)
        for i, column in enumerate(AWQ_ORDER):
            eight[..., column].copy_(part >> 4 * i & 15)

    inverse = torch.tensor(AWQ_ORDER, device=words.device).argsort()
    zero = nibbles(fields["qzeros"])[..., inverse].flatten(1).float()
    scale_row = torch.arange(k, device=words.device) // options["group_size"]
    scale = fields["scales"].float()
    return CodeMatrix((k, n), numbers, scale, zero, scale_row=scale_row, column_step=8, holds="Ŵᵀ")


def hqq(fields: Fields, shape: Shape, options: Options) -> CodeMatrix:
    """Ŵ [N, K] if groups do not cross rows and the halves are whole rows, else the shape of the storage."""
    (n, k), size, codes = shape, options["group_size"], fields["codes"]
    as_weight = options["axis"] == 1 and k % size == 0 and n % 2 == 0
    rows, columns = (n, k) if as_weight else (2 * codes.shape[0], codes.shape[1])
    packed, half = codes.reshape(rows // 2, columns), rows // 2

    def numbers(of_rows: slice, of_columns: slice, out: Tensor) -> None:
        high = min(of_rows.stop, half) - of_rows.start  # rows of the tile in the high four bits
        if high > 0:
            out[:high].copy_(packed[of_rows.start : of_rows.start + high, of_columns] >> 4)
        if of_rows.stop > half:
            low = slice(max(of_rows.start, half) - half, of_rows.stop - half)
            out[max(high, 0) :].copy_(packed[low, of_columns] & 15)

    scale, zero, scale_row = fields["scale"].float(), fields["zero"].float(), None
    if options["axis"] == 1:
        scale, zero = scale.reshape(rows, -1), zero.reshape(rows, -1)
    else:  # one row of scales, which each column has alone
        scale_row = torch.zeros(rows, dtype=torch.int64, device=codes.device)
    return CodeMatrix((rows, columns), numbers, scale, zero, scale_row=scale_row, holds="Ŵ" if as_weight else "flat")
