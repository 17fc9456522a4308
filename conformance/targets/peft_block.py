"""PEFT's layers from the operands of a fused block, as Unsloth and Axolotl find them in a model."""

from __future__ import annotations

from collections.abc import Callable, Collection
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from conformance.targets.peft import ADAPTER
from conformance.targets.wrapped_layer import library

with library("peft", "0.21.2", "pip install 'loraspec[peers]'"):
    import peft
    from peft.tuners.lora.layer import Linear


def peft_layer(projection: Any) -> nn.Module:
    """PEFT's layer around a frozen linear layer, or that layer alone where the projection has no adapter.

    Args:
        projection: (weight, bias, lora_A, lora_B, scale), the tensors themselves, which get the gradients.
    """
    weight, bias, lora_A, lora_B, scale = projection
    n, k = weight.shape
    base = nn.Linear(k, n, bias=bias is not None, device="meta")
    base._parameters.update(weight=weight.detach(), bias=bias)
    if lora_A is None:
        return base
    config = peft.LoraConfig(r=len(lora_A), lora_alpha=len(lora_A), init_lora_weights=False)
    with torch.device("meta"):  # PEFT draws no random numbers there
        layer: Any = Linear(base, ADAPTER, config=config, r=len(lora_A), lora_alpha=len(lora_A))
    layer.lora_A[ADAPTER]._parameters["weight"] = lora_A
    layer.lora_B[ADAPTER]._parameters["weight"] = lora_B
    layer.scaling[ADAPTER] = scale
    return layer  # type: ignore[no-any-return]


@torch.compiler.disable  # type: ignore[untyped-decorator]  # a model's layers are built before it is compiled
def block(activation: Callable[[Tensor], Tensor] | None = None, **projections: Any) -> SimpleNamespace:
    """A block of a model: PEFT's layers under the names that it has there, such as q_proj, and its activation."""
    layers = {f"{name}_proj": peft_layer(projection) for name, projection in projections.items()}
    return SimpleNamespace(**layers, act_fn=activation, training=True)


def on_tokens(function: Callable[[Tensor], Any], x: Tensor) -> Any:
    """The outputs of a function that takes x as [batch, tokens, K], for x with any leading dimensions."""
    if x.dim() == 3:
        return function(x)
    found = function(x.reshape(1, x.shape[:-1].numel(), x.shape[-1]))
    if isinstance(found, Tensor):
        return found.reshape(*x.shape[:-1], found.shape[-1])
    return tuple(y.reshape(*x.shape[:-1], y.shape[-1]) for y in found)


def check_dtype(x: Tensor, dtypes: Collection[str]) -> None:
    """Raise a NotImplementedError for an x of another dtype than a library's kernels take."""
    name = str(x.dtype).removeprefix("torch.")
    if name not in dtypes:
        raise NotImplementedError(f"x is {name}: expected {' or '.join(dtypes)}")
