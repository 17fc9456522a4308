"""How a layer stores its weight: as its numbers [N, K], or packed in another form."""

from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy


def is_packed(weight: Tensor, shape: tuple[Any, ...] | None = None) -> bool:
    """Whether a weight is not the matrix of its numbers.

    It is packed if its dtype is an integer or float8, if its shape is another one, or if it is of a class of tensors
    that has its own ``dequantize``.

    Args:
        shape: the shape of the numbers, where the caller knows it.
    """
    codes = not weight.dtype.is_floating_point or weight.dtype.itemsize == 1
    misshapen = weight.ndim != 2 if shape is None else tuple(weight.shape) != shape
    return codes or misshapen or has_dequantize(weight)


def has_dequantize(weight: Tensor) -> bool:
    """Whether a weight is of a class of tensors, such as torchao's, that has its own ``dequantize``."""
    return getattr(type(weight), "dequantize", Tensor.dequantize) is not Tensor.dequantize


def described(weight: Tensor) -> str:
    """The dtype and shape of a weight, for errors."""
    return f"{weight.dtype} {list(weight.shape)}"


def holds_packed_weight(module: nn.Module) -> bool:
    """Whether the weight of a linear layer, adapted or not, is packed."""
    weight: Any = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or is_lazy(weight):
        return False
    sizes = getattr(module, "out_features", None), getattr(module, "in_features", None)
    if None in sizes:  # a convolution's weight or a norm's is no packed matrix
        return is_packed(weight, tuple(weight.shape))
    turned = any(getattr(module, key, False) for key in ("fan_in_fan_out", "weight_transposed"))
    return is_packed(weight, None if turned else sizes)


def is_packed_elsewhere(module: nn.Module) -> bool:
    """Whether a module that is no nn.Linear holds the packed weight of a linear layer, as HQQ's and GPTQ's do.

    Such a module has numbers of features, and itself holds a matrix of integers or float8.
    """
    features = ("in_features", "infeatures"), ("out_features", "outfeatures")
    if isinstance(module, nn.Linear) or not all(any(_is_size(module, key) for key in keys) for keys in features):
        return False
    tensors = (*module._parameters.values(), *module._buffers.values())
    return any(t is not None and t.ndim == 2 and is_packed(t) for t in tensors)


def _is_size(module: nn.Module, key: str) -> bool:
    value = getattr(module, key, None)
    return isinstance(value, int) and not isinstance(value, bool)
