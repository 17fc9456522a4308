"""fp8: float8_e4m3fn codes with a scale for each block of rows and columns, ``Ŵ = q·s``.

``s = absmax/448`` and ``q = w/s``, rounded to the nearest code, ties to the even one. block_size [rows, columns] is
[1, K] for a scale a row, [N, K] for one of the whole weight; None stands for [1, K].

Source: Micikevicius et al., FP8 Formats for Deep Learning (2022); torchao 0.18.0, `Float8WeightOnlyConfig`.
"""

import torch
from torch import Tensor

from .format import Fields, Format, Layout, Options, Shape, divided, whole_number

LARGEST = 448.0


def _blocks(shape: Shape, options: Options) -> tuple[int, int]:
    size = options["block_size"]
    if size is None:
        return 1, shape[1]
    if not isinstance(size, tuple | list) or len(size) != 2:
        raise ValueError(f"block_size is {size!r}: expected (rows, columns)")
    rows, columns = (whole_number("block_size", value) for value in size)
    return rows, columns


def _decode(fields: Fields, shape: Shape, options: Options) -> Tensor:
    rows, columns = _blocks(shape, options)
    scale = fields["scale"].repeat_interleave(rows, 0).repeat_interleave(columns, 1)
    return fields["codes"].float() * scale


def _pack(weight: Tensor, options: Options, dtype: torch.dtype) -> dict[str, Tensor]:  # noqa: ARG001
    n, k = weight.shape
    rows, columns = _blocks((n, k), options)
    scale = weight.abs().view(n // rows, rows, k // columns, columns).amax((1, 3)) / LARGEST
    wide = scale.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
    codes = torch.where(wide > 0, weight / wide, 0.0).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
    return {"codes": codes, "scale": scale}


def _layout(shape: Shape, options: Options) -> Layout:
    rows, columns = _blocks(shape, options)
    grid = divided(shape[0], rows, "N", "block_size[0]"), divided(shape[1], columns, "K", "block_size[1]")
    return {"codes": (shape, (torch.float8_e4m3fn,)), "scale": (grid, (torch.float32,))}


FP8 = Format("fp8", _decode, _layout, _pack, {"block_size": None})
