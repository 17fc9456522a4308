"""int4: codes -8 … 7 with a scale, and where there is one a zero point, for each group of a row's columns.

``Ŵ = (q - z)·s`` for group ``k // group_size`` of the row; z = 0 where zero is not stored. Each code takes one int8, as
torchao stores it on a CPU. ``s = absmax/7.5`` in the dtype of the weight.

Source: torchao 0.18.0, `IntxWeightOnlyConfig`.
"""

import torch
from torch import Tensor

from .format import FLOATING, Fields, Format, Layout, Options, Shape, divided, whole_number


def _decode(fields: Fields, shape: Shape, options: Options) -> Tensor:  # noqa: ARG001
    size = options["group_size"]
    q, scale = fields["codes"].float(), fields["scale"].float().repeat_interleave(size, 1)
    if options["zero"]:
        q = q - fields["zero"].float().repeat_interleave(size, 1)
    return q * scale


def _pack(weight: Tensor, options: Options, dtype: torch.dtype) -> dict[str, Tensor]:
    n, k = weight.shape
    groups = weight.view(n, k // options["group_size"], options["group_size"])
    scale = (groups.abs().amax(2) / 7.5).clamp(min=torch.finfo(torch.float32).eps).to(dtype)
    codes = (groups * (1 / scale.float())[..., None]).round().clamp(-8, 7).view(n, k).to(torch.int8)
    zero = {"zero": torch.zeros_like(scale, dtype=torch.int8)} if options["zero"] else {}
    return {"codes": codes, "scale": scale, **zero}


def _layout(shape: Shape, options: Options) -> Layout:
    groups = divided(shape[1], whole_number("group_size", options["group_size"]), "K", "group_size")
    fields: Layout = {"codes": (shape, (torch.int8,)), "scale": ((shape[0], groups), FLOATING)}
    return {**fields, "zero": ((shape[0], groups), (torch.int8,))} if options["zero"] else fields


INT4 = Format("int4", _decode, _layout, _pack, {"group_size": 32, "zero": False})
