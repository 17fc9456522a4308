"""Functions that put fused adapters into a model: the reference patches the modules, then their class is replaced."""

import functools
from typing import Any

from torch import nn

import reference
from optimized.layer import LinearLoRA, TritonLinearLoRA
from reference import PeftConfig
from reference.model import patched_class


@functools.wraps(reference.patch_linear_module)
def patch_linear_module(orig_linear: nn.Linear, *args: Any, **kwargs: Any) -> LinearLoRA:
    """`reference.patch_linear_module`, signature and defaults included, with the classes of `optimized`."""
    return _fused(reference.patch_linear_module(orig_linear, *args, **kwargs))


def apply_lora_to_linear_modules(model: nn.Module, peft_config: PeftConfig) -> int:
    """`reference.apply_lora_to_linear_modules` with the classes of `optimized`; earlier layers keep their class."""
    without = [module for module in model.modules() if not isinstance(module, reference.LinearLoRA)]
    count = reference.apply_lora_to_linear_modules(model, peft_config)
    for module in without:
        if isinstance(module, reference.LinearLoRA):
            _fused(module)
    return count


def _fused(layer: Any) -> LinearLoRA:
    """Replace the class of a layer that the reference has patched, in place."""
    lora: Any = TritonLinearLoRA if isinstance(layer, reference.TritonLinearLoRA) else LinearLoRA
    plain = type(layer) in (reference.LinearLoRA, reference.TritonLinearLoRA)
    original = nn.Linear if plain else type(layer).__bases__[1]
    layer.__class__ = patched_class(original, lora)
    return layer  # type: ignore[no-any-return]
