"""The choice between a fused autograd node and the formula of the reference."""

from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from optimized.matrices import overreads
from reference import torch_internals


def why_not_fused(x: Tensor, *parameters: Tensor | None) -> str | None:
    """The reason why the reference must compute these operands, or None if the fused node can."""
    if torch.compiler.is_compiling():
        return "torch.compile fuses the formula itself"
    if torch_internals.is_transformed(x, *parameters):
        return "torch.func and forward-mode differentiation transform the formula"
    for t in (x, *parameters):
        if t is not None and type(t) is not Tensor and type(t) is not torch.nn.Parameter:
            return f"{type(t).__name__} is a tensor subclass with products of its own"
    if not (x.is_cpu or x.is_cuda):
        return f"no generator for dropout masks on {x.device.type}"
    return None


def is_plain(x: Tensor, weight: Any, bias: Tensor | None, lora_A: Tensor, lora_B: Tensor, scale: float) -> bool:
    """Whether the operands are valid, and all products are plain products in x's dtype.

    This is a single faster check in place of `check_operands` and `why_not_fused`.
    """
    if is_compiling() or torch_internals.is_transformed(x, weight, bias, lora_A, lora_B):
        return False
    if not {type(x), type(weight), type(lora_A), type(lora_B)} <= _PLAIN_TENSORS:
        return False
    dtype = x.dtype
    one_dtype = dtype == weight.dtype == lora_A.dtype == lora_B.dtype and dtype.is_floating_point
    if not one_dtype or scale == 0.0 or lora_B.dim() != 2 or not x.dim():
        return False
    (n, r), k = lora_B.shape, x.shape[-1]
    if weight.shape != (n, k) or lora_A.shape != (r, k):
        return False
    if bias is not None and (bias.dtype != dtype or bias.shape != (n,)):
        return False
    here = (x.is_cpu or x.is_cuda) and not torch_internals.is_autocast(x.device.type)
    return here and (dtype.itemsize > 2 or not overreads(x, r, k, n))


_PLAIN_TENSORS = frozenset((Tensor, torch.nn.Parameter))
