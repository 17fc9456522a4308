"""NeMo Automodel on bitsandbytes 4-bit: `loraspec run conformance.targets.nemo_bitsandbytes --group quantised`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from conformance.targets import bitsandbytes_base, nemo_automodel
from conformance.targets.bitsandbytes_base import dequantize_weight, packed_fields
from conformance.targets.packed_formats import check_format
from conformance.targets.wrapped_layer import version_of

__all__ = ["dequantize_weight", "packed_fields", "packed_linear", "patch_linear_module"]

OTHERS = {f"format_{name}": "absent" for name in ("int8_bitsandbytes", "int8_torchao", "fp8", "int4")}
CONFORMANCE = {
    "name": "NeMo Automodel on bitsandbytes",
    "version": f"{version_of('nemo-automodel')}+bitsandbytes.{version_of('bitsandbytes')}",
    "features": {**nemo_automodel.NO_RSLORA, **OTHERS, "packed_merge": "absent", "packed_dora": "absent"},
}
FORMATS = ("nf4", "fp4")


def packed_linear(
    linear: nn.Linear,
    format: str,  # noqa: A002
    *,
    compute_dtype: torch.dtype | None = None,
    **options: Any,
) -> nn.Module:
    """A Linear4bit of bitsandbytes.

    Raises:
        NotImplementedError: for other formats: NeMo knows a packed base by its quant_state.
        ValueError: for a format that does not exist.
    """
    check_format(format, FORMATS, "NeMo on bitsandbytes")
    return bitsandbytes_base.packed_linear(linear, format, compute_dtype=compute_dtype, **options)


def patch_linear_module(
    orig_linear: nn.Module,
    dim: int = 8,
    alpha: Any = 32,
    dropout: float = 0.0,
    dropout_position: str = "post",
    lora_A_init_method: str = "xavier",
    lora_dtype: Any = None,
    use_triton: bool = True,
) -> nn.Module:
    """NeMo's function; its dtype of the adapter must be given on a packed base, and is float32 here if it is not."""
    return nemo_automodel.patch_linear_module(
        orig_linear,
        dim,
        alpha,
        dropout,
        dropout_position,
        lora_A_init_method,
        lora_dtype or torch.float32,
        use_triton,
    )
