"""Packed linear layers of bitsandbytes, for the targets that adapt them: 4-bit with tables, and 8-bit rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import reference
from conformance.targets.packed_formats import check_format, check_sizes
from conformance.targets.wrapped_layer import library

WRITTEN_FOR = ("bitsandbytes", "0.50.2", "pip install --no-deps bitsandbytes")
with library(*WRITTEN_FOR):
    import bitsandbytes as bnb
    from bitsandbytes.nn import Int8Params, Linear4bit, Linear8bitLt, Params4bit

BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
FORMATS = ("nf4", "fp4", "int8_bitsandbytes")


def packed_linear(
    linear: nn.Linear,
    format: str,  # noqa: A002
    *,
    compute_dtype: torch.dtype | None = None,
    **options: Any,
) -> nn.Module:
    """A Linear4bit or Linear8bitLt with the weight of an nn.Linear, and a copy of its bias.

    A Linear4bit may store its weight in another order for AVX512-BF16, at the first call in eval mode; this is off.

    Raises:
        NotImplementedError: for what bitsandbytes does not have.
        ValueError: for a format or a block size that cannot be.
    """
    check_format(format, FORMATS, "bitsandbytes")
    if format == "int8_bitsandbytes":
        layer = _eight_bit(linear, compute_dtype, **options)
    else:
        layer = _four_bit(linear, format, compute_dtype, **options)
    if linear.bias is not None:
        layer.bias = nn.Parameter(linear.bias.detach().clone(), requires_grad=False)
    return layer.to("cpu" if linear.weight.device.type == "cpu" else linear.weight.device).train(linear.training)  # type: ignore[no-any-return]


def _four_bit(
    linear: nn.Linear,
    format: str,  # noqa: A002
    compute_dtype: torch.dtype | None,
    block_size: int = 64,
    nested: bool = False,
) -> Any:
    check_sizes("block_size", block_size, linear, (block_size,))
    if block_size not in BLOCK_SIZES:
        raise NotImplementedError(f"block_size = {block_size}: bitsandbytes has {', '.join(map(str, BLOCK_SIZES))}")
    k, n = linear.in_features, linear.out_features
    layer = Linear4bit(k, n, linear.bias is not None, compute_dtype, compress_statistics=nested, quant_type=format)
    layer.support_avx512bf16_for_cpu = False
    layer.weight = Params4bit(
        linear.weight.detach().clone(),
        requires_grad=False,
        quant_type=format,
        blocksize=block_size,
        compress_statistics=nested,
        module=layer,
    )
    return layer


def _eight_bit(linear: nn.Linear, compute_dtype: torch.dtype | None) -> Any:
    if compute_dtype not in (None, torch.float16):
        raise NotImplementedError(f"compute_dtype = {compute_dtype}: Linear8bitLt computes in float16")
    layer = Linear8bitLt(linear.in_features, linear.out_features, linear.bias is not None, has_fp16_weights=False)
    layer.weight = Int8Params(linear.weight.detach().clone(), requires_grad=False, has_fp16_weights=False)
    return layer


def is_eight_bit(module: nn.Module) -> bool:
    """Whether a base is a Linear8bitLt."""
    return isinstance(module, Linear8bitLt)


def base_of(module: Any) -> Any:
    """The layer of bitsandbytes in an adapted layer; a base as it is."""
    return module.get_base_layer() if hasattr(module, "get_base_layer") else module


def packed_fields(module: nn.Module) -> dict[str, Any]:
    """The storage of a layer in the fields of `reference`, read from bitsandbytes' tensors."""
    return reference.packed_fields(base_of(module))


@torch.no_grad()
def dequantize_weight(module: nn.Module) -> Tensor:
    """The numbers [N, K] of a layer by bitsandbytes' own functions, float32."""
    base = base_of(module)
    state = getattr(base.weight, "quant_state", None)
    if state is not None:
        return bnb.functional.dequantize_4bit(base.weight.data, state).float()  # type: ignore[no-any-return]
    scales = base.weight.SCB if base.weight.SCB is not None else base.state.SCB
    return bnb.functional.int8_vectorwise_dequant(base.weight.data, scales).float()  # type: ignore[no-any-return]
