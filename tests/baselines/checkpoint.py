"""A right target for group `checkpoint`, split into small methods; a known-bad twin overrides one of them."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

import reference
from conformance.clauses.checkpoint.peft_files import CONFIG, PREFIX, REST, TENSORS
from tests.known_bad import record

FIELDS = {
    "r": "dim",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "use_dora": "use_dora",
    "use_rslora": "use_rslora",
}
DEFAULTS = {"r": 8, "lora_alpha": 8, "lora_dropout": 0.0, "use_dora": False, "use_rslora": False}
SAYING = ("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "task_type")
SAYING += ("eva_config", "loftq_config", "megatron_config", "megatron_core")  # no effect on plain linear layers
BEGAN = (True, False, "gaussian", "orthogonal", "eva")
CHOOSING = ("target_modules", "exclude_modules", "layers_pattern", "layers_to_transform")
MAGNITUDE = "lora_magnitude_vector"


class Right:
    """A target for group `checkpoint`: it saves adapters and loads them into adapted models in small steps."""

    PeftConfig: Any = reference.PeftConfig
    LinearLoRA: Any = reference.LinearLoRA
    LoraTraining: Any = reference.LoraTraining
    apply_lora_to_linear_modules = staticmethod(reference.apply_lora_to_linear_modules)
    HybridFHEModel: Any = reference.HybridFHEModel
    get_remote_names = staticmethod(reference.get_remote_names)

    # saving

    def save_adapter(self, model: nn.Module, config: Any, path: Any) -> None:
        """Check the layers against the config, then write the adapter's files."""
        layers = self.layers(model)
        if not layers:
            self.meets_nothing()
        for layer in layers.values():
            if (layer.dim, layer.alpha, layer.use_rslora) != (config.dim, config.alpha, config.use_rslora):
                self.meets_another(layer, config)
        files = {
            TENSORS: self.encoded(self.collected(layers)),
            CONFIG: json.dumps(self.described(config, model, sorted(layers)), sort_keys=True).encode(),
            REST: json.dumps(config.to_dict(), sort_keys=True).encode(),
        }
        folder = Path(path)
        self.make(folder)
        self.write(folder, files)

    def layers(self, model: nn.Module) -> dict[str, Any]:
        """Return the adapted layers by name."""
        found = model.named_modules()
        return {self.plain(name): m for name, m in found if isinstance(m, reference.LinearLoRA)}

    def plain(self, name: str) -> str:
        """Return a name without the parts that torch.compile adds."""
        return name.replace("_orig_mod.", "")

    def meets_nothing(self) -> None:
        """Refuse to save a model without adapters."""
        raise ValueError("no adapters")

    def meets_another(self, layer: Any, config: Any) -> None:
        """Refuse a config that differs from the layer's."""
        raise ValueError(f"the config differs from the layer's: {config} and {layer}")

    def collected(self, layers: dict[str, Any]) -> dict[str, Tensor]:
        """Return the tensors to save by their names in the file."""
        found: dict[str, Tensor] = {}
        for name, layer in layers.items():
            for part, tensor in self.parts(layer).items():
                found[f"{PREFIX}{name}.{part}"] = tensor.detach().clone().contiguous()
        return found

    def parts(self, layer: Any) -> dict[str, Tensor]:
        """Return the tensors of one layer by their PEFT names."""
        found = {"lora_A.weight": layer.lora_A.weight, "lora_B.weight": layer.lora_B.weight}
        return found if layer.lora_magnitude is None else found | {MAGNITUDE: layer.lora_magnitude}

    def encoded(self, tensors: dict[str, Tensor]) -> bytes:
        """Return the bytes of a safetensors file."""
        return safetensors.torch.save(tensors, {"format": "pt"})

    def described(self, config: Any, model: nn.Module, names: list[str]) -> dict[str, Any]:
        """Return the contents of adapter_config.json."""
        values = {theirs: getattr(config, ours) for theirs, ours in FIELDS.items()}
        return values | {"peft_type": "LORA", "bias": "none", "target_modules": self.targets(config, model, names)}

    def targets(self, config: Any, model: nn.Module, names: list[str]) -> Any:
        """Return a regular expression that matches the full layer names."""
        return "|".join(name.replace(".", r"\.") for name in names)

    def make(self, folder: Path) -> None:
        """Create the folder."""
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, folder: Path, files: dict[str, bytes]) -> None:
        """Write all files under temporary names, then rename them."""
        try:
            for name, data in files.items():
                (folder / f".{name}.new").write_bytes(data)
        except BaseException:
            for name in files:
                (folder / f".{name}.new").unlink(missing_ok=True)
            raise
        for name in files:
            os.replace(folder / f".{name}.new", folder / name)

    # loading

    def load_adapter(self, model: nn.Module, path: Any) -> Any:
        """Read and check the files, then copy the values into the model."""
        folder = Path(path)
        tensors = self.tensors(folder)
        values = self.values(folder)
        self.check_fields(values)
        rest = json.loads((folder / REST).read_text()) if (folder / REST).exists() else None
        layers = self.layers(model)
        named = self.named(tensors)
        config = self.config(values, rest, sorted(named))
        if not layers:
            return self.meets_plain(model, named, config)
        self.check(layers, named, config)
        self.copy(layers, named)
        self.train_only(model, layers)
        return config

    def train_only(self, model: nn.Module, layers: dict[str, Any]) -> None:
        """Let exactly the adapters require gradients."""
        kept = {id(tensor) for layer in layers.values() for tensor in self.parts(layer).values()}
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in kept)

    def tensors(self, folder: Path) -> dict[str, Tensor]:
        """Return the file's tensors."""
        return safetensors.torch.load(self.read(folder, TENSORS))

    def values(self, folder: Path) -> dict[str, Any]:
        """Return the contents of adapter_config.json."""
        try:
            values = json.loads(self.read(folder, CONFIG))
        except RecursionError:
            raise ValueError(f"{CONFIG} is nested too deeply") from None
        if not isinstance(values, dict):
            raise ValueError(f"{CONFIG} is not a JSON object")
        return values

    def read(self, folder: Path, name: str) -> bytes:
        """Return the bytes of a file; refuse a link that leads out of its folder."""
        path = (folder / name).resolve(strict=True)
        if path.parent not in (folder.resolve(), folder.resolve().parent.parent / "blobs"):
            raise ValueError(f"{name} leads out of its folder")
        return path.read_bytes()

    def check_fields(self, values: dict[str, Any]) -> None:
        """Refuse unsupported fields and values."""
        fine: dict[str, Any] = {"peft_type": ("LORA",), "bias": ("none",), "init_lora_weights": self.began}
        for key, value in values.items():
            if key in fine and value not in fine[key]:
                self.meets_field(key, value)
            if key not in (*fine, *FIELDS, *SAYING, *CHOOSING):
                self.meets_unknown(key, value)

    began = BEGAN

    def meets_field(self, key: str, value: Any) -> None:
        """Refuse a field whose value is not supported."""
        raise ValueError(f"{key} = {value!r} is not supported")

    def meets_unknown(self, key: str, value: Any) -> None:
        """Refuse an unknown field unless its value is empty."""
        if value:
            self.meets_field(key, value)

    def config(self, values: dict[str, Any], rest: Any, names: list[str]) -> Any:
        """Return the config that `load_adapter` returns."""
        options = {ours: values.get(theirs, self.defaults[theirs]) for theirs, ours in FIELDS.items()}
        for theirs, ours in FIELDS.items():
            self.check_value(theirs, {ours: options[ours]})
        if rest is not None:
            return reference.PeftConfig.from_dict(rest | options)
        return reference.PeftConfig(target_modules=names, dropout_position="pre", **options)

    defaults = DEFAULTS

    def check_value(self, field: str, option: dict[str, Any]) -> None:
        """Refuse a value that is out of range, by the field's name in the file."""
        try:
            reference.PeftConfig(**option)
        except ValueError as error:
            raise ValueError(f"{field}: {error}") from None

    def named(self, tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
        """Return the tensors by layer and part."""
        found: dict[str, dict[str, Tensor]] = {}
        for key in sorted(tensors):
            part = next((p for p in ("lora_A.weight", "lora_B.weight", MAGNITUDE) if key.endswith(f".{p}")), None)
            if part is None or not key.startswith(PREFIX):
                self.meets_tensor(key)
                continue
            found.setdefault(key.removeprefix(PREFIX).removesuffix(f".{part}"), {})[part] = tensors[key]
        return found

    def meets_tensor(self, key: str) -> None:
        """Refuse a tensor that does not belong to an adapter."""
        raise ValueError(f"unexpected tensor {key}")

    def meets_plain(self, model: nn.Module, named: dict[str, dict[str, Tensor]], config: Any) -> Any:
        """Refuse to load into a model without adapters."""
        raise ValueError("the model has no adapters")

    def check(self, layers: dict[str, Any], named: dict[str, dict[str, Tensor]], config: Any) -> None:
        """Refuse layers and tensors that do not fit the model."""
        for name in sorted({*named, *layers}):
            if name not in layers or set(named.get(name, ())) != set(self.parts(layers[name])):
                self.meets_names(name)
                continue
            self.check_layer(layers[name], config)
            for part, own in self.parts(layers[name]).items():
                self.check_tensor(f"{name}.{part}", named[name][part], own)

    def meets_names(self, name: str) -> None:
        """Refuse a layer whose tensors in the file differ from those in the model."""
        raise ValueError(f"missing or unexpected tensors of {name}")

    def check_layer(self, layer: Any, config: Any) -> None:
        """Refuse a different scale."""
        if (layer.dim, layer.alpha, layer.use_rslora) != (config.dim, config.alpha, config.use_rslora):
            raise ValueError(f"the model's rank, alpha or use_rslora differs from {config}")

    def check_tensor(self, name: str, tensor: Tensor, own: Tensor) -> None:
        """Refuse a different shape, or a dtype that is not floating point."""
        if tensor.shape != own.shape or not tensor.dtype.is_floating_point:
            raise ValueError(f"{name} is {tensor.dtype} {list(tensor.shape)}: expected {list(own.shape)}")
        if not torch.equal(tensor.isfinite(), tensor.to(own.dtype).isfinite()):
            raise ValueError(f"{name} is too large for {own.dtype}")

    @torch.no_grad()
    def copy(self, layers: dict[str, Any], named: dict[str, dict[str, Tensor]]) -> None:
        """Copy the values into the layers."""
        for name, layer in layers.items():
            layer.unmerge()
            for part, own in self.parts(layer).items():
                self.copy_one(layer, part, own, named[name][part])

    def copy_one(self, layer: Any, part: str, own: Any, value: Tensor) -> None:
        """Copy one tensor."""
        own.copy_(value)

    # training runs

    def save_training(self, training: Any, path: Any, step: int = 0) -> None:
        """Save a training run as the reference does."""
        reference.save_training(training, path, step)

    def load_training(self, training: Any, path: Any) -> int:
        """Load a training run as the reference does."""
        return reference.load_training(training, path)


def trained_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the trainable parameters by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def unpickled(path: Path) -> Any:
    """Return the object that a pickle file holds."""
    return pickle.loads(path.read_bytes())


def checkpoint_breaks(*clauses: str, says: str, dtypes: tuple[str, ...] = ("float32",), source: str = "") -> Any:
    """Return a decorator that registers a target class as a known-bad twin of each of these clauses."""

    def register(kind: type) -> type:
        for clause in clauses:
            record(kind.__name__, kind(), clause, groups=("checkpoint",), says=says, dtypes=dtypes, source=source)
        return kind

    return register
