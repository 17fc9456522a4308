"""Unsloth's fused blocks, `apply_lora_qkv` and its MLPs: `loraspec run conformance.targets.unsloth_blocks`.

Without a GPU, Triton's interpreter runs the kernels of the activations. PEFT's layers hold the operands, as in a model
that Unsloth patches. The blocks are called with `inplace=False`; by default Unsloth writes dX into x. Where the kernels
are interpreted, the MLPs are not compiled, because the compiler would trace the interpreter, which lacks a tanh too.
"""

from __future__ import annotations

import functools
import os
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from conformance.targets.fused_peft import FEATURES
from conformance.targets.peft_block import block, check_dtype, on_tokens
from conformance.targets.unsloth import FAST_LORA
from conformance.targets.wrapped_layer import version_of
from reference.mlp import check_mlp

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
MLP: dict[str, Any] = {
    "silu": (functools.partial(FAST_LORA.apply_lora_mlp_swiglu, inplace=False), F.silu),
    "gelu": (functools.partial(FAST_LORA.apply_lora_mlp_geglu_exact, inplace=False), F.gelu),
}
if INTERPRETED:
    uncompiled: Any = torch.compiler.disable
    MLP = {name: (uncompiled(apply), activated) for name, (apply, activated) in MLP.items()}
else:  # this one has no argument `inplace`
    MLP["gelu_tanh"] = FAST_LORA.apply_lora_mlp_geglu_approx, lambda t: F.gelu(t, approximate="tanh")
CONFORMANCE: dict[str, Any] = {
    "name": "Unsloth apply_lora_qkv, apply_lora_mlp",
    "version": version_of("unsloth"),
    # the activations are computed in float32, and Triton's interpreter computes bfloat16 wrongly
    "dtypes": ("float32", "float16") if INTERPRETED else ("float32", "float16", "bfloat16"),
    "features": {**FEATURES, "ungated": "absent", "block_bias": "absent", "activation_relu2": "absent"}
    | ({"activation_gelu_tanh": "absent"} if INTERPRETED else {}),
}


def lora_qkv(x: Tensor, q: Any, k: Any, v: Any) -> Any:
    """Unsloth's query, key and value of one x."""
    check_dtype(x, CONFORMANCE["dtypes"])
    _check_bias(q, k, v)
    attention = block(q=q, k=k, v=v)
    return on_tokens(lambda t: FAST_LORA.apply_lora_qkv(attention, t, inplace=False), x)


def lora_mlp(x: Tensor, gate: Any, up: Any, down: Any, activation: str = "silu") -> Any:
    """Unsloth's feed-forward block with a gate."""
    check_mlp(x, gate, up, down, activation)
    check_dtype(x, CONFORMANCE["dtypes"])
    if gate is None or activation not in MLP:
        raise NotImplementedError(f"a block without a gate or with {activation}: Unsloth has {', '.join(MLP)}, gated")
    _check_bias(gate, up, down)
    apply, activated = MLP[activation]
    mlp = block(activated, gate=gate, up=up, down=down)
    return on_tokens(lambda t: apply(mlp, t), x)


def _check_bias(*projections: Any) -> None:
    if any(projection[1] is not None for projection in projections):
        raise NotImplementedError("a bias: Unsloth leaves the blocks of such layers to PEFT")
