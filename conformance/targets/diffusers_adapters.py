"""The loader of diffusers, `load_lora_adapter`: `loraspec adapters conformance.targets.diffusers_adapters`.

diffusers gives the method to its own models by a mixin, which is put before the class of the model here. It takes the
tensors by the names of the model's modules, and the fields of `adapter_config.json` as metadata.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from conformance.targets.wrapped_layer import library, version_of

with library("diffusers", "0.42.1", "pip install diffusers==0.42.1"):
    from diffusers.loaders.peft import PeftAdapterMixin

CONFORMANCE: dict[str, Any] = {"name": "diffusers load_lora_adapter", "version": version_of("diffusers")}
PREFIX = "base_model.model."


def load_adapter(model: Any, path: str) -> None:
    """Load an adapter into a model, in place."""
    folder = Path(path)
    fields = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "adapter_model.safetensors")
    model.__class__ = type(type(model).__name__, (PeftAdapterMixin, type(model)), {})
    named = {key.removeprefix(PREFIX): tensor for key, tensor in tensors.items()}
    model.load_lora_adapter(named, prefix=None, metadata=fields)
