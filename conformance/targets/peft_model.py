"""Hugging Face PEFT's `get_peft_model` and its merging: `loraspec run conformance.targets.peft_model`.

`get_peft_model` changes the model in place and returns a wrapper of it. The suite keeps the model, and the wrapper is
an attribute of it that is no submodule. `peft.py` judges `inject_adapter_in_model` and the layers.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from conformance.targets.wrapped_layer import library, version_of

WRITTEN_FOR = ("peft", "0.21.2", "pip install 'loraspec[peers]'")
with library(*WRITTEN_FOR):
    import peft
    from peft.tuners.lora.layer import LoraLayer

    from conformance.targets.peft import _config, _dtype, cast_adapters, patching_by

WARNS = "PEFT warns that a model is modified for a second time, and draws the adapter again, on purpose"
CONFORMANCE = {
    "name": "peft get_peft_model",
    "version": version_of("peft"),
    "dropout_positions": ("pre",),
    "features": {
        "name_rule": "suffix",
        "exclusions": "combined",
        "initialisation": "absent",  # PEFT draws lora_A by kaiming_uniform_(a=√5) or gaussian
        "linear_only": "absent",
        "shared_names": "first name",
        "argument_checks": "when used",
    },
    "deviations": {"MOD-AGAIN": WARNS, "MOD-TWICE": WARNS},
}
ADAPTER = "default"
WRAPPER = "peft_wrapper"


def apply_lora_to_linear_modules(model: nn.Module, peft_config: Any) -> int:
    """PEFT's `get_peft_model`, which leaves adapters in the model, with match_all_linear as its target `all-linear`."""
    targets = "all-linear" if peft_config.match_all_linear else peft_config.target_modules or None
    dtype = _dtype(peft_config.lora_dtype)
    patterns = {key: getattr(peft_config, key, None) or {} for key in ("rank_pattern", "alpha_pattern")}
    patterns |= {"target_modules": targets, "exclude_modules": peft_config.exclude_modules or None}
    config = _config(peft_config, **patterns)
    before = _count(model)
    known = set(model.parameters())
    wrapper = peft.get_peft_model(model, config, ADAPTER, autocast_adapter_dtype=False)
    cast_adapters(model, known, dtype)
    model.__dict__[WRAPPER] = wrapper
    return _count(model) - before


def _count(model: nn.Module) -> int:
    return sum(isinstance(module, LoraLayer) for module in model.modules())


patch_linear_module = patching_by(apply_lora_to_linear_modules)


def merge_adapters(model: nn.Module) -> int:
    """PEFT's `merge_adapter`; the number of layers that it merged."""
    before = _merged(model)
    model.__dict__[WRAPPER].merge_adapter()
    return _merged(model) - before


def unmerge_adapters(model: nn.Module) -> int:
    """PEFT's `unmerge_adapter`; the number of layers that were merged."""
    merged = _merged(model)
    model.__dict__[WRAPPER].unmerge_adapter()
    return merged


def _merged(model: nn.Module) -> int:
    return sum(bool(layer.merged) for layer in model.modules() if isinstance(layer, LoraLayer))
