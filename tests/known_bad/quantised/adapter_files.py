"""Known-bad twins of adapter files: they hold the storage, name the base, or load something else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import reference
from tests.baselines.quantised import RightPacked
from tests.known_bad import breaks

ONE = {"dtypes": ("float32",)}
TENSORS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


class RightFiles(RightPacked):
    """A target that saves and loads adapters on packed bases."""

    PeftConfig: Any = reference.PeftConfig

    apply_lora_to_linear_modules: Any = staticmethod(reference.apply_lora_to_linear_modules)

    def save_adapter(self, model: Any, config: Any, path: Any) -> None:
        reference.save_adapter(model, config, path)

    def load_adapter(self, model: Any, path: Any) -> Any:
        return reference.load_adapter(model, path)


class WritesOtherTensors(RightFiles):
    """A target whose files hold what `written` makes of the tensors."""

    def save_adapter(self, model: Any, config: Any, path: Any) -> None:
        super().save_adapter(model, config, path)
        file = Path(path) / TENSORS
        save_file(self.written(load_file(file), model.proj), file)

    def written(self, tensors: dict[str, Any], layer: Any) -> dict[str, Any]:
        raise NotImplementedError


@breaks(
    "QNT-FILE",
    says="on a packed base holds base_model.model.proj.weight",
    source="every entry of the state_dict",
    **ONE,
)
class SavesTheStorageToo(WritesOtherTensors):
    def written(self, tensors: dict[str, Any], layer: Any) -> dict[str, Any]:
        packed = {} if layer.weight.is_floating_point() else {"base_model.model.proj.weight": layer.weight.detach()}
        return {**tensors, **packed}


@breaks("QNT-FILE", says="is another tensor in the file", source="adapters saved in the compute dtype", **ONE)
class SavesTheAdapterIn16Bits(WritesOtherTensors):
    def written(self, tensors: dict[str, Any], layer: Any) -> dict[str, Any]:
        packed = not layer.weight.is_floating_point()
        return {name: t.bfloat16() if packed else t for name, t in tensors.items()}


@breaks("QNT-FILE", says="the configuration differs", source="load_in_4bit in the adapter's configuration", **ONE)
class NamesTheBaseInTheConfiguration(RightFiles):
    def save_adapter(self, model: Any, config: Any, path: Any) -> None:
        super().save_adapter(model, config, path)
        if not model.proj.weight.is_floating_point():
            file = Path(path) / CONFIG
            file.write_text(json.dumps({**json.loads(file.read_text()), "load_in_4bit": True}))


@breaks("QNT-FILE-LOAD", says="worst    y", source="shapes taken from the storage, the rest skipped", **ONE)
class SkipsLoraBOnAPackedBase(RightFiles):
    def load_adapter(self, model: Any, path: Any) -> Any:
        before = model.proj.lora_B.weight.detach().clone() if hasattr(model.proj, "lora_B") else 0.0
        config = super().load_adapter(model, path)
        if not model.proj.weight.is_floating_point():
            with torch.no_grad():
                model.proj.lora_B.weight.zero_().add_(before)
        return config


@breaks("QNT-FILE-LOAD", says="load_adapter onto a packed base changed", source="a base packed again", **ONE)
class PacksAgainAtLoading(RightFiles):
    def load_adapter(self, model: Any, path: Any) -> Any:
        config = super().load_adapter(model, path)
        layer = model.proj
        if not layer.weight.is_floating_point():
            numbers = layer.packed_weight.dequantize() * 1.25
            packed = reference.pack_weight(numbers, layer.format, **layer.options)
            for name, field in layer.packed_weight.fields.items():
                field.copy_(packed.fields[name])
        return config
