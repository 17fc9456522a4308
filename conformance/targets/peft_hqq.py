"""PEFT on HQQ, 4-bit: `loraspec run conformance.targets.peft_hqq --group quantised`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from conformance.targets import packed_peft
from conformance.targets.packed_formats import check_format
from conformance.targets.wrapped_layer import library, version_of

WRITTEN_FOR = ("hqq", "0.2.8", "pip install --no-deps hqq termcolor")
with library(*WRITTEN_FOR):
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

CONFORMANCE = {
    **packed_peft.declared(format_hqq="packed"),
    "name": "peft on HQQ",
    "version": f"{version_of('peft')}+hqq.{version_of('hqq')}",
}


def packed_linear(
    linear: nn.Linear,
    format: str,  # noqa: A002
    *,
    compute_dtype: torch.dtype | None = None,
    group_size: int = 64,
    axis: int = 1,
) -> nn.Module:
    """An HQQLinear with the weight and bias of an nn.Linear, which computes in the weight's dtype.

    Raises:
        NotImplementedError: for another format than hqq, and another compute dtype: HQQ does not cast x to it.
        ValueError: for a format that does not exist.
    """
    check_format(format, ("hqq",), "HQQ")
    if compute_dtype not in (None, linear.weight.dtype):
        raise NotImplementedError(f"compute_dtype = {compute_dtype}: x is {linear.weight.dtype}, and HQQ casts nothing")
    config = BaseQuantizeConfig(nbits=4, group_size=group_size, axis=axis)
    dtype, device = linear.weight.dtype, str(linear.weight.device)
    layer: nn.Module = HQQLinear(packed_peft.copied(linear), config, compute_dtype=dtype, device=device)
    return layer.train(linear.training)


def _loaded(_: nn.Module) -> dict[str, Any]:
    """PEFT knows an HQQLinear by its class."""
    return {}


patch_linear_module = packed_peft.patching(_loaded)


def packed_fields(module: nn.Module) -> dict[str, Any]:
    """The storage of a layer in the fields of `reference`, read from HQQ's tensors."""
    base = packed_peft.base_of(module)
    meta = base.meta
    options = {"group_size": meta["group_size"], "axis": meta["axis"]}
    fields = {"codes": base.W_q.data, "scale": meta["scale"], "zero": meta["zero"]}
    return {"format": "hqq", "shape": tuple(meta["shape"]), "options": options, "fields": fields}


@torch.no_grad()
def dequantize_weight(module: nn.Module) -> Tensor:
    """The numbers [N, K] of a layer by HQQ's own `dequantize`, float32."""
    return packed_peft.base_of(module).dequantize().float()  # type: ignore[no-any-return]
