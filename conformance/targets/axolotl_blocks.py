"""Axolotl's fused blocks, `apply_lora_qkv` and its two MLPs: `loraspec run conformance.targets.axolotl_blocks`.

Without a GPU, Triton's interpreter runs the kernels of the activations, whose outputs Axolotl allocates on "cuda": here
they are on the CPU. PEFT's layers hold the operands, as in a model that Axolotl patches.
"""

from __future__ import annotations

import os
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from conformance.targets.axolotl import ALLOCATING, LORA
from conformance.targets.fused_peft import FEATURES
from conformance.targets.peft_block import block, check_dtype, on_tokens
from conformance.targets.wrapped_layer import version_of
from reference.mlp import check_mlp

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
MLP = {"silu": (LORA.apply_lora_mlp_swiglu, F.silu), "gelu": (LORA.apply_lora_mlp_geglu, F.gelu)}
CONFORMANCE: dict[str, Any] = {
    "name": "Axolotl apply_lora_qkv, apply_lora_mlp",
    "version": version_of("axolotl"),
    # the activations are computed in float32, and Triton's interpreter computes bfloat16 wrongly
    "dtypes": ("float32", "float16") if INTERPRETED else ("float32", "float16", "bfloat16"),
    "features": {**FEATURES, "ungated": "absent", "activation_relu2": "absent", "activation_gelu_tanh": "absent"},
    "deviations": {"FUS-BWD-TWICE": "swiglu_backward and geglu_backward store their results in the saved tensors"},
}


class _OnTheCPU(ModuleType):
    """torch, whose `empty` gives memory of the CPU."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def empty(self, *size: Any, device: Any = None, **options: Any) -> Tensor:  # noqa: ARG002
        """Uninitialised memory of the CPU."""
        return torch.empty(*size, **options)


if not torch.cuda.is_available():
    for _module in ALLOCATING:
        _module.torch = _OnTheCPU("torch")


def lora_qkv(x: Tensor, q: Any, k: Any, v: Any) -> Any:
    """Axolotl's query, key and value of one x."""
    check_dtype(x, CONFORMANCE["dtypes"])
    attention = block(q=q, k=k, v=v)
    return on_tokens(lambda t: LORA.apply_lora_qkv(attention, t), x)


def lora_mlp(x: Tensor, gate: Any, up: Any, down: Any, activation: str = "silu") -> Any:
    """Axolotl's feed-forward block with a gate."""
    check_mlp(x, gate, up, down, activation)
    check_dtype(x, CONFORMANCE["dtypes"])
    if gate is None or activation not in MLP:
        raise NotImplementedError(f"a block without a gate or with {activation}: Axolotl has {', '.join(MLP)}, gated")
    apply, activated = MLP[activation]
    mlp = block(activated, gate=gate, up=up, down=down)
    return on_tokens(lambda t: apply(mlp, t), x)
