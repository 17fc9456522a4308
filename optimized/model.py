"""Functions that put fused adapters into a model: the reference patches the modules, then their class is replaced."""

import functools
from typing import Any

from torch import nn

import reference
from optimized.experts import GroupedExpertsLoRA
from optimized.layer import LinearLoRA, TritonLinearLoRA
from reference import PeftConfig
from reference.model import adapt_model
from reference.patched_class import patched_class


@functools.wraps(reference.patch_linear_module)
def patch_linear_module(orig_linear: nn.Linear, *args: Any, **kwargs: Any) -> LinearLoRA:
    """`reference.patch_linear_module`, signature and defaults included, with the classes of `optimized`."""
    return _fused(reference.patch_linear_module(orig_linear, *args, **kwargs))


def apply_lora_to_linear_modules(model: nn.Module, peft_config: PeftConfig) -> int:
    """`reference.apply_lora_to_linear_modules` with the classes of `optimized`; earlier layers keep their class."""
    return adapt_model(model, peft_config, patch_linear_module, GroupedExpertsLoRA)


def _fused(layer: Any) -> LinearLoRA:
    """Replace the class of a layer that the reference has patched, in place."""
    lora: Any = TritonLinearLoRA if isinstance(layer, reference.TritonLinearLoRA) else LinearLoRA
    layer.__class__ = patched_class(layer.original_class, lora)
    return layer  # type: ignore[no-any-return]
