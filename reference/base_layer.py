"""The linear layer under an adapter: which layers can have one, which can be merged, and the weight as [N, K]."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .config import LORA_DTYPES
from .dora import row_norm
from .hybrid import LINEAR_LAYERS, Conv1D, CustomLinear
from .packed_base import dequantize_weight, packed_source
from .packed_product import Dequantizable


def check_adaptable(module: object, use_dora: bool = False, lora_dtype: torch.dtype | None = None) -> None:
    """Refuse a module that cannot have an adapter.

    Args:
        lora_dtype: the adapter's dtype; None for the dtype of the weight, or on a packed base for `adapter_dtype`.
    Raises:
        ValueError: for a module that is neither an nn.Linear nor transformers' Conv1D, or has an adapter; for a
            weight that is missing, not initialised, or neither floating point [N, K] nor packed in a known way (see
            `packed_source`); with use_dora, for a zero row, and for an own forward of a base that is not packed.
    """
    kind = type(module).__name__
    if not isinstance(module, LINEAR_LAYERS):
        raise ValueError(f"got a {kind}: expected an nn.Linear or a Conv1D of transformers")
    linear: Any = module
    if hasattr(linear, "lora_A") or hasattr(linear, "lora_B"):
        raise ValueError(f"this {kind} already has an adapter: expected an nn.Linear without one")
    if not isinstance(linear, nn.Linear) and not is_conv1d(linear):
        raise ValueError(f"{kind} is a subclass of Conv1D and may compute something else: expected Conv1D itself")
    weight = getattr(linear, "weight", None)
    if not isinstance(weight, Tensor):
        raise ValueError(f"this {kind} has weight = {weight!r}: expected a tensor")
    if is_lazy(weight):
        raise ValueError(f"the weight of this {kind} is not initialised: call the model once before")
    packed = packed_source(linear)
    if packed is not None:
        _check_packed(linear, packed, use_dora, lora_dtype)
        return
    own = has_own_forward(linear)
    for dtype in {weight.dtype, lora_dtype or weight.dtype} if not own else {lora_dtype or weight.dtype}:
        if dtype not in LORA_DTYPES:
            expected = ", ".join(str(d).removeprefix("torch.") for d in LORA_DTYPES)
            hint = ", or one of them as lora_dtype" if own else ""
            raise ValueError(f"the weight of this {kind} is {dtype}: expected one of {expected}{hint}")
    if use_dora:
        if own:
            raise ValueError(f"{kind} has its own forward: DoRA needs nn.Linear's, x Wᵀ + b")
        row_norm(weight_matrix(weight, is_conv1d(linear)))


def _check_packed(linear: Any, packed: Dequantizable, use_dora: bool, lora_dtype: torch.dtype | None) -> None:
    if lora_dtype is not None and lora_dtype not in LORA_DTYPES:
        expected = ", ".join(str(d).removeprefix("torch.") for d in LORA_DTYPES)
        raise ValueError(f"lora_dtype of this {type(linear).__name__} is {lora_dtype}: expected one of {expected}")
    if use_dora:
        row_norm(packed.dequantize(torch.float32))


def check_mergeable(layer: Any) -> None:
    """Refuse an adapted layer whose output does not follow from `weight` as ``x Wᵀ + b``.

    Raises:
        ValueError: naming the class, for a packed base, for a patched subclass with its own forward, a weight that is
            computed from other parameters (as by weight_norm), and a base_layer of another class than `CustomLinear`.
    """
    base, original = getattr(layer, "base_layer", None), layer.original_class
    if layer.has_packed_base:
        kind = type(layer.weight) if original is nn.Linear else original
        how = getattr(layer, "format", layer.weight.dtype)
        raise ValueError(
            f"{kind.__name__} is packed as {how}, so that merging would round the update away: expected a floating "
            f"point weight; merge_dequantized(layer) gives a new nn.Linear"
        )
    if computes_weight(layer):
        kind = type(layer) if original is nn.Linear else original
        raise ValueError(
            f"{kind.__name__} computes its weight from other parameters, so that a merged weight would be lost: "
            f"expected a Parameter, which remove_parametrizations or remove_weight_norm of torch make of it"
        )
    if original.forward is not nn.Linear.forward or not isinstance(base, CustomLinear | None):
        kind = original if base is None else type(base)
        raise ValueError(
            f"{kind.__name__} has its own forward, in which a merged weight may give another layer: expected "
            f"nn.Linear's, x Wᵀ + b"
        )


def is_conv1d(module: object) -> bool:
    """Whether a module is transformers' Conv1D itself, with a weight [K, N], and not of a subclass."""
    return isinstance(module, Conv1D) and nn.Module in type(module).__bases__


def has_own_forward(linear: nn.Module) -> bool:
    """Whether a layer is of a subclass of nn.Linear that computes something else."""
    return isinstance(linear, nn.Linear) and type(linear).forward is not nn.Linear.forward


def computes_weight(linear: nn.Module) -> bool:
    """Whether the weight is computed from other parameters, by a parametrisation or by weight_norm's hook."""
    return "weight" not in linear._parameters


def weight_matrix(weight: Tensor, fan_in_fan_out: bool) -> Tensor:
    """A weight as W [N, K]; with fan_in_fan_out it is stored as Wᵀ, as in Conv1D."""
    return weight.t() if fan_in_fan_out else weight


def unpacked_weight(layer: Any) -> Tensor:
    """The weight of a layer as W [N, K]; of a packed base, the numbers that it stands for."""
    if getattr(layer, "has_packed_base", False):
        return dequantize_weight(layer)
    return weight_matrix(layer.weight, getattr(layer, "fan_in_fan_out", False))


def features(linear: Any) -> tuple[int, int]:
    """K and N of a linear layer."""
    if is_conv1d(linear):
        k, n = linear.weight.shape
        return k, n
    return linear.in_features, linear.out_features


def freeze(linear: Any) -> None:
    """Freeze the weight and the bias, and the parameters that the weight is computed from."""
    if computes_weight(linear):
        linear.requires_grad_(False)
        if "weight" in vars(linear):  # weight_norm's hook writes it here at each call, but only at calls
            linear.weight = linear.weight.detach()
    else:
        linear.weight.requires_grad_(False)
    if linear.bias is not None:
        linear.bias.requires_grad_(False)
