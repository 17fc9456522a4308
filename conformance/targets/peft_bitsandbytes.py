"""PEFT on bitsandbytes, 4-bit and 8-bit: `loraspec run conformance.targets.peft_bitsandbytes --group quantised`."""

from __future__ import annotations

from typing import Any

from torch import nn

from conformance.targets import packed_peft
from conformance.targets.bitsandbytes_base import Linear8bitLt, dequantize_weight, packed_fields, packed_linear
from conformance.targets.wrapped_layer import version_of

__all__ = ["dequantize_weight", "packed_fields", "packed_linear", "patch_linear_module"]

CONFORMANCE = {
    **packed_peft.WRAPPED,
    "name": "peft on bitsandbytes",
    "version": f"{version_of('peft')} on {version_of('bitsandbytes')}",
}


def patch_linear_module(
    orig_linear: nn.Module,
    dim: int = 8,
    alpha: Any = 32,
    dropout: float = 0.0,
    dropout_position: str = "post",
    lora_A_init_method: str = "xavier",  # noqa: ARG001  PEFT has its own
    lora_dtype: Any = None,
    use_triton: bool = True,  # noqa: ARG001
    *,
    use_dora: bool = False,
    use_rslora: bool = False,
) -> Any:
    """PEFT's layer around a layer of bitsandbytes, as in a model that transformers has loaded in 4 or 8 bits."""
    loaded = "is_loaded_in_8bit" if isinstance(orig_linear, Linear8bitLt) else "is_loaded_in_4bit"
    return packed_peft.injected(
        orig_linear,
        {loaded: True},
        dim=dim,
        alpha=alpha,
        dropout=dropout,
        dropout_position=dropout_position,
        lora_dtype=lora_dtype,
        use_dora=use_dora,
        use_rslora=use_rslora,
    )
