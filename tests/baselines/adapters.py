"""A small right loader of golden adapters, from which wrong ones inherit; it reads the files and adapts no model."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

PREFIX = "base_model.model."


class Loader:
    """The change of each parameter; each method is one rule of PEFT's files."""

    def load_adapter_deltas(self, model: nn.Module, path: str) -> dict[str, Tensor]:
        """The changes of an adapter's folder."""
        folder = Path(path)
        config = json.loads((folder / "adapter_config.json").read_text())
        tensors = {
            self.unprefixed(key): t.double() for key, t in load_file(folder / "adapter_model.safetensors").items()
        }
        self.refuse(config)
        found: dict[str, Tensor] = {}
        for key in sorted(key for key in tensors if key.endswith(".lora_A.weight")):
            name = key.removesuffix(".lora_A.weight")
            A, B = tensors[key], tensors[f"{name}.lora_B.weight"]
            if ".experts" in name:
                found |= self.experts(model, name, A, B, config)
                continue
            update = self.scale(config, name, len(A)) * (B @ A)
            if config["use_dora"]:
                weight = model.get_parameter(f"{name}.weight").double()
                update = self.dora(weight, update, tensors[f"{name}.lora_magnitude_vector"])
            found[f"{name}.weight"] = self.turned(model.get_submodule(name), update)
            if config.get("lora_bias"):
                bias = tensors[f"{name}.lora_B.bias"]
                found[f"{name}.bias"] = self.bias_scale(config, name, len(A)) * bias
        return found

    def refuse(self, config: dict[str, Any]) -> None:
        """Refuse what is not supported."""
        for field in ("modules_to_save",):
            if config.get(field):
                raise ValueError(f"{field} = {config[field]!r} is not supported")
        if config["bias"] != "none":
            raise ValueError(f"bias = {config['bias']!r}: expected 'none'")
        if config["target_modules"] == ["embed_tokens"]:
            raise ValueError("adapters of an embedding are not supported")

    def unprefixed(self, key: str) -> str:
        """The name of a tensor without PEFT's prefix."""
        return key.removeprefix(PREFIX)

    def matched(self, patterns: dict[str, Any], name: str, default: Any) -> Any:
        """The value of the first pattern that matches the end of a name."""
        return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", name)), default)

    def scale(self, config: dict[str, Any], name: str, rank: int) -> float:
        """The factor of an update."""
        alpha = self.matched(config.get("alpha_pattern", {}), name, config["lora_alpha"])
        return float(alpha) / (math.sqrt(rank) if config["use_rslora"] else rank)

    def bias_scale(self, config: dict[str, Any], name: str, rank: int) -> float:
        """The factor of the bias of lora_B."""
        return self.scale(config, name, rank)

    def turned(self, module: nn.Module, update: Tensor) -> Tensor:
        """An update [out, in] as the module has its weight."""
        return update.T if type(module).__name__ == "Conv1D" else update

    def dora(self, weight: Tensor, update: Tensor, magnitude: Tensor) -> Tensor:
        """The change of a weight by DoRA."""
        adapted = weight + update
        return adapted * (magnitude / adapted.norm(dim=1))[:, None] - weight

    def experts(self, model: nn.Module, name: str, A: Tensor, B: Tensor, config: dict[str, Any]) -> dict[str, Tensor]:
        """The changes of the parameters of experts."""
        outer = not name.endswith(".base_layer")
        parameter = f"{name}.down_proj" if outer else f"{name.removesuffix('.base_layer')}.gate_up_proj"
        count = len(model.get_parameter(parameter))
        rank = len(A) // count
        first, second = self.unpacked(A, B, count, rank)
        return {parameter: self.scale(config, parameter, rank) * torch.bmm(second, first)}

    def unpacked(self, A: Tensor, B: Tensor, count: int, rank: int) -> tuple[Tensor, Tensor]:
        """A [experts, r, in] and B [experts, out, r]."""
        return A.reshape(count, rank, -1), B.reshape(len(B), rank, count).permute(2, 0, 1)
