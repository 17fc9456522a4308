"""Right targets for the lives of models; known-bad twins override methods of the first."""

from __future__ import annotations

from typing import Any

from torch import nn

import reference
from tests.baselines.checkpoint import Right
from tests.baselines.model import RightModel


class LivedModel:
    """A target whose functions are the reference's.

    Attributes:
        layer: the class that adapted layers get.
    """

    PeftConfig: Any = reference.PeftConfig
    layer: Any = reference.LinearLoRA

    def apply_lora_to_linear_modules(self, model: nn.Module, peft_config: Any) -> int:
        """Adapt the layers, and let each new one be a `layer`."""
        before = self.layers(model)
        count = reference.apply_lora_to_linear_modules(model, peft_config)
        self.adopt(model, before)
        return count

    def adopt(self, model: nn.Module, before: dict[str, Any]) -> None:
        """Let each new layer be a `layer`."""
        for name, layer in self.layers(model).items():
            if name not in before:
                layer.__class__ = self.layer
                self.adapted(model, layer)

    def adapted(self, model: nn.Module, layer: Any) -> None:
        """A layer of a model has got an adapter."""

    def layers(self, model: nn.Module) -> dict[str, Any]:
        """The adapted layers by name."""
        return {name: m for name, m in model.named_modules() if isinstance(m, reference.LinearLoRA)}

    def merge_adapters(self, model: nn.Module) -> int:
        """Merge all adapted layers."""
        return reference.merge_adapters(model)

    def unmerge_adapters(self, model: nn.Module) -> int:
        """Unmerge all merged layers."""
        return reference.unmerge_adapters(model)

    def save_adapter(self, model: nn.Module, config: Any, path: Any) -> None:
        """Save the adapters."""
        reference.save_adapter(model, config, path)

    def load_adapter(self, model: nn.Module, path: Any) -> Any:
        """Load the adapters, and let each new layer be a `layer`."""
        before = self.layers(model)
        found = reference.load_adapter(model, path)
        self.adopt(model, before)
        self.loaded(model, plain=not before)
        return found

    def loaded(self, model: nn.Module, *, plain: bool) -> None:
        """A model, which may have been plain before, has got the adapters of a file."""


class AdaptedByParts(LivedModel):
    """Chooses, freezes and patches layers in the steps of `RightModel`."""

    def apply_lora_to_linear_modules(self, model: nn.Module, peft_config: Any) -> int:
        """Adapt the layers."""
        count: int = RightModel().apply_lora_to_linear_modules(model, peft_config)
        return count


class SavedByParts(LivedModel):
    """Saves and loads in the steps of `Right`, which refuses a model without adapters."""

    def save_adapter(self, model: nn.Module, config: Any, path: Any) -> None:
        """Save the adapters."""
        Right().save_adapter(model, config, path)

    def load_adapter(self, model: nn.Module, path: Any) -> Any:
        """Load the adapters."""
        return Right().load_adapter(model, path)
