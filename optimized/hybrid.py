"""A frozen linear layer whose products may run elsewhere, fused where they run here."""

import torch.nn.functional as F
from torch import Tensor, nn

import reference
from reference.hybrid import (
    LINEAR_LAYERS,
    BackwardModuleLinear,
    ForwardBackwardModule,
    ForwardModuleLinear,
    get_remote_names,
)

__all__ = [
    "LINEAR_LAYERS",
    "BackwardModuleLinear",
    "CustomLinear",
    "ForwardBackwardModule",
    "ForwardModuleLinear",
    "get_remote_names",
    "why_not_fused",
]


class CustomLinear(reference.CustomLinear):
    """`reference.CustomLinear` as PyTorch's own linear node, ``y = x Wᵀ + b`` with ``dX = g W``.

    Where `why_not_fused` gives a reason, both products go through `ForwardBackwardModule`.
    """

    def forward(self, input_tensor: Tensor) -> Tensor:
        """As the reference's."""
        if why_not_fused(self, input_tensor) is not None:
            return super().forward(input_tensor)
        # detached, so that W and b get no gradient; autograd still sees them change
        weight = self.weight.detach()
        bias = None if self.bias is None else self.bias.detach()
        return F.linear(input_tensor, weight.t() if self.weight_transposed else weight, bias)


def why_not_fused(layer: reference.CustomLinear, x: Tensor) -> str | None:
    """Why a layer's products go through its two modules, or None if one node computes them.

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
