"""Codes of one byte each: int8 rows of bitsandbytes and torchao, groups of int4, and float8."""

import functools

import torch
from torch import Tensor

from optimized.packed.code_matrix import CodeMatrix, Numbers, looked_up
from reference.packed.eight_bit_rows import INVERSE_127
from reference.packed.format import Fields, Options, Shape


def int8_bitsandbytes(fields: Fields, shape: Shape, options: Options) -> CodeMatrix:  # noqa: ARG001
    """``q·absmax·(1/127)``."""
    return CodeMatrix(shape, _integers(fields["codes"]), fields["absmax"][:, None], factor=INVERSE_127)


def int8_torchao(fields: Fields, shape: Shape, options: Options) -> CodeMatrix:  # noqa: ARG001
    """``q·s``."""
    return CodeMatrix(shape, _integers(fields["codes"]), fields["scale"][:, None])


def int4(fields: Fields, shape: Shape, options: Options) -> CodeMatrix:
    """``(q - z)·s`` for groups of a row's columns."""
    zero = fields["zero"].float() if options["zero"] else None
    return CodeMatrix(shape, _integers(fields["codes"]), fields["scale"].float(), zero)


def fp8(fields: Fields, shape: Shape, options: Options) -> CodeMatrix:  # noqa: ARG001
    """``q·s`` for blocks of rows and columns.

    PyTorch converts float8 one element at a time, which takes five times as long as a table of 256 numbers.
    """
    codes, scale = fields["codes"].view(torch.uint8), fields["scale"]
    table = _float8_values(codes.device)

    def numbers(rows: slice, columns: slice, out: Tensor) -> None:
        looked_up(codes[rows, columns], table, out)

    high = shape[0] // max(scale.shape[0], 1)
    scale_row = None if high == 1 else torch.arange(shape[0], device=codes.device) // high
    return CodeMatrix(shape, numbers, scale, scale_row=scale_row)


def _integers(codes: Tensor) -> Numbers:
    def numbers(rows: slice, columns: slice, out: Tensor) -> None:
        out.copy_(codes[rows, columns])

    return numbers


@functools.cache
def _float8_values(device: torch.device) -> Tensor:
    """The number of each float8_e4m3fn, by its bits: float32 [256]."""
    return torch.arange(256, device=device, dtype=torch.int16).to(torch.uint8).view(torch.float8_e4m3fn).float()
