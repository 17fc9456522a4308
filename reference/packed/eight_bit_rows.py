"""int8 codes with one scale for each row of the weight.

`int8_bitsandbytes`: ``Ŵ = q·absmax·(1/127)`` for the largest magnitude of a row, absmax, of the weight in float16.
`int8_torchao`: ``Ŵ = q·s`` for ``s = absmax/127.5``.

Source: Dettmers et al., LLM.int8() (2022), bitsandbytes 0.50.2, `int8_vectorwise_quant`; torchao 0.18.0,
    `Int8WeightOnlyConfig`.
"""

import torch
from torch import Tensor

from .format import Fields, Format, Layout, Options, Shape

INVERSE_127 = 7.874015718698502e-3  # bitsandbytes' constant; training there uses absmax/127, which differs by 1e-7


def _decode_bitsandbytes(fields: Fields, shape: Shape, options: Options) -> Tensor:  # noqa: ARG001
    return fields["codes"].float() * fields["absmax"][:, None] * INVERSE_127


def _pack_bitsandbytes(weight: Tensor, options: Options, dtype: torch.dtype) -> dict[str, Tensor]:  # noqa: ARG001
    half = weight.half().float()
    absmax = half.abs().amax(1)
    scaled = torch.where(absmax[:, None] > 0, half * (127 / absmax)[:, None], 0.0)
    return {"codes": scaled.round().to(torch.int8), "absmax": absmax}


def _layout_bitsandbytes(shape: Shape, options: Options) -> Layout:  # noqa: ARG001
    return {"codes": (shape, (torch.int8,)), "absmax": ((shape[0],), (torch.float32,))}


def _decode_torchao(fields: Fields, shape: Shape, options: Options) -> Tensor:  # noqa: ARG001
    return fields["codes"].float() * fields["scale"][:, None]


def _pack_torchao(weight: Tensor, options: Options, dtype: torch.dtype) -> dict[str, Tensor]:  # noqa: ARG001
    scale = (weight.abs().amax(1) / 127.5).clamp(min=torch.finfo(torch.float32).eps)
    codes = (weight * (1 / scale)[:, None]).round().clamp(-128, 127)
    return {"codes": codes.to(torch.int8), "scale": scale}


def _layout_torchao(shape: Shape, options: Options) -> Layout:  # noqa: ARG001
    return {"codes": (shape, (torch.int8,)), "scale": ((shape[0],), (torch.float32,))}


BITSANDBYTES = Format("int8_bitsandbytes", _decode_bitsandbytes, _layout_bitsandbytes, _pack_bitsandbytes)
TORCHAO = Format("int8_torchao", _decode_torchao, _layout_torchao, _pack_torchao)
