"""The replacement of a model's frozen linear layers by `CustomLinear`s, whose products may run remotely."""

import warnings
from typing import Any

from torch import nn

from .base_layer import computes_weight
from .hybrid import LINEAR_LAYERS, Conv1D, CustomLinear, is_frozen_product, is_lora_module
from .layer import LinearLoRA
from .stored_weight import described, holds_packed_weight


def replace_linear_layers(model: nn.Module, custom_linear: type[CustomLinear], skipped: int) -> None:
    """Implement `LoraTraining.replace_layers_with_custom` with `CustomLinear` or a subclass of it.

    Args:
        skipped: the number of first layers that stay as they are.
    """
    check_floating(model)
    eligible = _eligible(model)
    for module in list(eligible)[skipped:]:
        names = eligible[module]
        if module.bias is not None and module.bias.requires_grad and not module.weight.requires_grad:
            warnings.warn(
                f"{names[0]}: its bias is trainable while its weight is frozen; CustomLinear gives the "
                f"bias no gradient",
                stacklevel=3,
            )
        custom = custom_linear(module.weight, module.bias, _is_transposed(module)).train(module.training)
        if isinstance(module, LinearLoRA):
            custom.owned_by_parent = True
            module.base_layer = custom
            continue
        # The dicts of hooks are shared, so that existing handles still remove their hooks.
        vars(custom).update({key: value for key, value in vars(module).items() if "hooks" in key})
        custom._is_full_backward_hook = module._is_full_backward_hook
        for name in names:
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, custom)


def check_floating(model: nn.Module) -> None:
    """Refuse a model with a linear layer whose weight is packed: its product cannot become a `CustomLinear`."""
    linear: Any = LINEAR_LAYERS
    for name, module in model.named_modules():
        if isinstance(module, linear) and holds_packed_weight(module):
            raise ValueError(
                f"{name or 'the model'} is a {type(module).__name__} whose weight is {described(module.weight)}: "
                f"CustomLinear needs a floating point weight [N, K], such as that of merge_dequantized(layer)"
            )


def _is_transposed(module: nn.Module) -> bool:
    """Whether the weight of a layer is [K, N]: of a Conv1D, adapted or not."""
    return isinstance(module, Conv1D) or bool(getattr(module, "fan_in_fan_out", False))


def _eligible(model: nn.Module) -> dict[Any, list[str]]:
    """The layers to replace, each with all its names, in registration order."""
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    inside_lora = {m for m, all_names in names.items() if any(is_lora_module(name, m) for name in all_names)}
    eligible: dict[Any, list[str]] = {}
    for module, all_names in names.items():
        if module in inside_lora or getattr(module, "base_layer", None) is not None:
            continue
        own_products = isinstance(module, LinearLoRA) and not module.base_is_elsewhere and not computes_weight(module)
        if own_products or (is_frozen_product(all_names[0], module) and all_names != [""]):
            eligible[module] = all_names
        elif isinstance(module, nn.Linear) and all_names != [""]:
            warnings.warn(
                f"{all_names[0]} is left alone: {type(module).__name__} is a subclass of nn.Linear and may "
                f"compute something else",
                stacklevel=4,
            )
    return eligible
