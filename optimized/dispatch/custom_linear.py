"""The choice whether the products of a `CustomLinear` are one autograd node."""

from torch import Tensor, nn

import reference
from reference.hybrid import BackwardModuleLinear, ForwardModuleLinear


def why_not_one_node(layer: reference.CustomLinear, x: Tensor) -> str | None:
    """The reason why a layer's products need its two modules, or None if one node computes them.

    Args:
        layer: the layer.   x: [*, K], its input.
    """
    for name, expected in (
        ("forward_module", ForwardModuleLinear),
        ("backward_module", BackwardModuleLinear),
    ):
        module = getattr(layer, name)
        if type(module) is not expected:
            return f"{name} is a {type(module).__name__}, not a {expected.__name__}"
        if _has_hooks(module):
            return f"{name} has hooks"
    if x.ndim == 0 or x.shape[-1] != layer.in_features:
        return f"x is {list(x.shape)} and the layer takes {layer.in_features} features"
    return None


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )
