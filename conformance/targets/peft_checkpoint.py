"""Hugging Face PEFT's `save_pretrained` and `from_pretrained`: `loraspec run conformance.targets.peft_checkpoint`.

A model is adapted by `get_peft_model`, as in `peft_model.py`. PEFT saves the config that the adapter has, so the config
that is given is not read; what PEFT loads is given back as a config of this project.
"""

from __future__ import annotations

from typing import Any

from torch import nn

import reference
from conformance.targets.peft_model import ADAPTER, WRAPPER, apply_lora_to_linear_modules
from conformance.targets.peft_model import CONFORMANCE as OF_MODELS
from conformance.targets.wrapped_layer import library

with library("peft", "0.21.2", "pip install 'loraspec[peers]'"):
    import peft

CONFORMANCE = OF_MODELS | {
    "name": "peft save_pretrained",
    "deviations": {
        "CKP-FOLDER": "README.md is PEFT's model card, which each save writes anew",
        "CKP-WHOLE": "README.md is PEFT's model card, which each save writes anew before the tensors",
        "CKP-CONFIG-BACK": "PEFT's config has no dtype of the adapter, and chooses layers by the modules' names",
    },
}
__all__ = ["CONFORMANCE", "apply_lora_to_linear_modules", "load_adapter", "save_adapter"]


def save_adapter(model: nn.Module, config: Any, path: str) -> None:
    """PEFT's `save_pretrained`.

    Raises:
        ValueError: for a model without adapters, which has no such method.
    """
    del config
    wrapper = model.__dict__.get(WRAPPER)
    if wrapper is None:
        raise ValueError(f"{type(model).__name__} has no adapter of PEFT to save")
    wrapper.save_pretrained(path)


def load_adapter(model: nn.Module, path: str) -> Any:
    """PEFT's `load_adapter` into a model with adapters, and its `from_pretrained` into another, to be trained."""
    options: dict[str, Any] = {"is_trainable": True, "autocast_adapter_dtype": False}
    if WRAPPER in model.__dict__:
        model.__dict__[WRAPPER].load_adapter(path, ADAPTER, **options)
    else:
        model.__dict__[WRAPPER] = peft.PeftModel.from_pretrained(model, path, **options)
    found = model.__dict__[WRAPPER].peft_config[ADAPTER]
    targets = found.target_modules
    return reference.PeftConfig(
        target_modules=[targets] if isinstance(targets, str) else sorted(targets),
        exclude_modules=sorted(found.exclude_modules or ()),
        dim=found.r,
        alpha=found.lora_alpha,
        dropout=found.lora_dropout,
        dropout_position="pre" if found.lora_dropout else "post",
        use_dora=found.use_dora,
        use_rslora=found.use_rslora,
        rank_pattern=dict(found.rank_pattern),
        alpha_pattern=dict(found.alpha_pattern),
    )
