"""Which product a module computes that is to run remotely."""

from typing import Any

from torch import Tensor, nn

from ..hybrid import BackwardModuleLinear, Conv1D, CustomLinear, ForwardModuleLinear
from ..stored_weight import described, holds_packed_weight


def product_of(module: nn.Module, name: str) -> tuple[Tensor, Tensor | None]:
    """The product that a module computes, ``y = x Mᵀ + b``: M [N, K] and b.

    Raises:
        ValueError: naming the module, if it computes something else.
    """
    weight: Any = getattr(module, "weight", None)
    bias: Any = getattr(module, "bias", None)
    if holds_packed_weight(module):
        raise ValueError(
            f"{name} is a {type(module).__name__} whose weight is {described(weight)}, which is packed: expected a "
            f"floating point weight [N, K], such as that of merge_dequantized(layer)"
        )
    if isinstance(module, ForwardModuleLinear):
        return (weight.t() if module.weight_transposed else weight), bias
    if isinstance(module, BackwardModuleLinear):
        return (weight if module.weight_transposed else weight.t()), None
    if isinstance(module, Conv1D):
        return weight.t(), bias
    if type(module) is nn.Linear:
        return weight, bias
    hint = ""
    if isinstance(module, CustomLinear):
        hint = ": name its forward_module and its backward_module"
    elif hasattr(module, "lora_A"):
        hint = ": its adapter stays with the client; name the modules of its base_layer"
    raise ValueError(
        f"{name} is a {type(module).__name__}: expected a ForwardModuleLinear, a BackwardModuleLinear, an nn.Linear "
        f"or a Conv1D{hint}"
    )
