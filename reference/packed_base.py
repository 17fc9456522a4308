"""Packed bases of this package and of others: which layers have one, what they store, and the numbers it stands for."""

from typing import Any

import torch
from torch import Tensor, nn

from .dora import dora_weight
from .linear import widen, without_autocast
from .packed_linear import PackedLinear
from .packed_product import Dequantizable
from .packed_weight import Description, PackedWeight
from .stored_weight import described, has_dequantize, holds_packed_weight


def packed_weight_of(module: nn.Module) -> PackedWeight | None:
    """The storage of a module in this package's fields, or None if its class is not known here.

    Known are `PackedLinear`, and by their attributes Linear4bit and Linear8bitLt of bitsandbytes.
    """
    if isinstance(module, PackedLinear):
        return module.packed_weight
    weight: Any = getattr(module, "weight", None)
    state = getattr(weight, "quant_state", None)
    if state is not None:
        return _four_bit(weight, state)
    scales = getattr(weight, "SCB", None)
    if scales is None:
        scales = getattr(getattr(module, "state", None), "SCB", None)
    if scales is not None and weight.dtype == torch.int8:
        return PackedWeight(
            "int8_bitsandbytes", tuple(weight.shape), {"codes": weight.detach(), "absmax": scales.flatten()}
        )
    return None


def _four_bit(weight: Tensor, state: Any) -> PackedWeight:
    """A weight of bitsandbytes' Linear4bit."""
    n, k = state.shape
    fields = {"codes": weight.detach().view(-1, 1)}
    if state.nested:
        fields |= {"absmax_codes": state.absmax, "absmax2": state.state2.absmax, "offset": state.offset}
    else:
        fields |= {"absmax": state.absmax}
    options = {"block_size": state.blocksize, "nested": bool(state.nested)}
    return Description(state.quant_type, (n, k), options).with_fields(fields)


def packed_source(module: nn.Module) -> Dequantizable | None:
    """The frozen weight of a module if it is packed, else None.

    Raises:
        ValueError: for a weight that is packed in a way that is not known: of an integer dtype, float8, or not [N, K],
            where neither the module nor the weight has a ``dequantize``; naming class, dtype and shape.
    """
    known = packed_weight_of(module)
    if known is not None:
        return known
    weight: Any = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        return None
    if has_dequantize(weight):
        return _Dequantized(weight, tuple(weight.shape))
    sizes = (getattr(module, "out_features", None), getattr(module, "in_features", None))
    if callable(getattr(module, "dequantize", None)) and None not in sizes:
        return _Dequantized(module, sizes)
    if holds_packed_weight(module):
        expected = "[N, K]" if None in sizes else list(sizes)
        raise ValueError(
            f"the weight of this {type(module).__name__} is {described(weight)} and no way to dequantize it "
            f"is known: expected a floating point weight {expected}, or a base with dequantize()"
        )
    return None


class _Dequantized:
    """A packed weight of another library: a module or a tensor with ``dequantize``."""

    def __init__(self, owner: Any, shape: tuple[Any, ...]) -> None:
        self.owner, self.shape = owner, shape

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        return self.owner.dequantize().detach().to(dtype)  # type: ignore[no-any-return]


@torch.no_grad()
def dequantize_weight(module: nn.Module) -> Tensor:
    """The numbers Ŵ [N, K] of a packed base, float32; of an adapted layer, without its update.

    Raises:
        ValueError: if the weight is not packed, or packed in an unknown way.
    """
    return _packed(module).dequantize(torch.float32)


def packed_fields(module: nn.Module) -> dict[str, Any]:
    """The storage of a packed base: the format, shape and options of `PackedWeight`, and its tensors by name.

    Returns:
        {"format": …, "shape": (N, K), "options": {…}, "fields": {name: tensor}}; the tensors share the module's memory.
    Raises:
        ValueError: if the weight is not packed in one of this package's formats.
    """
    weight = packed_weight_of(module)
    if weight is None:
        raise ValueError(f"{type(module).__name__} is not packed in a known format: expected a PackedLinear")
    return {
        "format": weight.format,
        "shape": weight.shape,
        "options": dict(weight.options),
        "fields": dict(weight.fields),
    }


@torch.no_grad()
def merge_dequantized(layer: Any) -> nn.Linear:
    """A new nn.Linear with the weight ``Ŵ + scale · B A`` of an adapted layer on a packed base, rounded once.

    Args:
        layer: stays as it is.
    Returns:
        an nn.Linear in the adapter's dtype, with a copy of the bias, and the layer's mode. It never holds the weight
        from before packing, whose difference to Ŵ the adapter has learnt to correct.
    Raises:
        ValueError: if the layer has no adapter or no packed base.
    """
    if not hasattr(layer, "lora_A"):
        raise ValueError(f"this {type(layer).__name__} has no adapter: expected an adapted layer on a packed base")
    numbers = _packed(layer).dequantize(torch.float32)
    with without_autocast(numbers):
        merged = _adapted(layer, numbers)
    linear = nn.Linear.__new__(nn.Linear)
    nn.Module.__init__(linear)
    linear.out_features, linear.in_features = merged.shape
    dtype = layer.lora_A.weight.dtype
    linear.weight = nn.Parameter(merged.to(dtype), requires_grad=False)
    bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone().to(dtype), requires_grad=False)
    linear.register_parameter("bias", bias)
    return linear.train(layer.training)


def _adapted(layer: Any, numbers: Tensor) -> Tensor:
    A, B = widen(layer.lora_A.weight), widen(layer.lora_B.weight)
    if layer.lora_magnitude is not None:
        return dora_weight(numbers, A, B, layer.scale, layer.lora_magnitude)
    merged: Tensor = numbers + B @ A * layer.scale
    return merged


def _packed(module: nn.Module) -> Dequantizable:
    source = packed_source(module)
    if source is None:
        weight = getattr(module, "weight", None)
        got = f"{weight.dtype} {list(weight.shape)}" if isinstance(weight, Tensor) else repr(weight)
        raise ValueError(f"the weight of this {type(module).__name__} is {got}: expected a packed weight")
    return source


def adapter_dtype(module: nn.Module) -> torch.dtype:
    """The dtype of an adapter on a packed base if none is given.

    It is the base's compute_dtype, else that of a floating bias, else that of a floating scale, else float32.
    """
    known = packed_weight_of(module)
    scales = [] if known is None else [t.dtype for name, t in known.fields.items() if name in {"scale", "scales"}]
    bias = getattr(module, "bias", None)
    for dtype in (getattr(module, "compute_dtype", None), getattr(bias, "dtype", None), *scales):
        if dtype is not None and dtype.is_floating_point and dtype.itemsize > 1:
            return dtype
    return torch.float32
