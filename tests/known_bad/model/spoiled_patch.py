"""Right patches of a model's layers, which twins make wrong in one respect."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import linear

from tests.baselines.model import RightModel


def update(layer: Any, x: Tensor) -> Tensor:
    """Return `s·(x Aᵀ) Bᵀ` of a patched layer."""
    return linear(linear(x, layer.lora_A.weight), layer.lora_B.weight) * layer.scale


class AfterPatching(RightModel):
    """A right patch, then `spoil(layer, options)` with the options of the patch."""

    def patch_linear_module(self, orig_linear: Any, *arguments: Any, **options: Any) -> Any:
        layer = super().patch_linear_module(orig_linear, *arguments, **options)
        return self.spoil(layer, options) or layer

    def spoil(self, layer: Any, options: dict[str, Any]) -> Any:
        raise NotImplementedError


def reclassed(layer: Any, **methods: Any) -> None:
    """Give a patched layer a new subclass with these methods."""
    layer.__class__ = type(f"Twin{type(layer).__name__}", (type(layer),), methods)


class Computes(AfterPatching):
    """A patched layer whose forward is `compute(layer, x)`."""

    def spoil(self, layer: Any, options: Any) -> None:
        compute = self.compute

        def forward(layer: Any, x: Tensor) -> Tensor:
            return compute(layer, x)

        reclassed(layer, forward=forward)

    def compute(self, layer: Any, x: Tensor) -> Tensor:
        return linear(x, layer.weight, layer.bias) + update(layer, x)


MODEL = {"groups": ("model",), "dtypes": ("float32",)}
HALF = {"groups": ("model",), "dtypes": ("bfloat16",)}


class ChangesOptions(RightModel):
    """A right patch whose options are changed by `changed`."""

    def patch_linear_module(self, orig_linear: Any, *arguments: Any, **options: Any) -> Any:
        return super().patch_linear_module(orig_linear, *arguments, **self.changed(options))

    def changed(self, options: dict[str, Any]) -> dict[str, Any]:
        raise NotImplementedError


ALL = {**MODEL, "dtypes": ("float64", "float32", "bfloat16")}


class ByName(RightModel):
    """A right model in which `strike` changes the adapted layers that `struck` selects by name."""

    def apply_lora_to_linear_modules(self, model: nn.Module, peft_config: Any) -> Any:
        count = super().apply_lora_to_linear_modules(model, peft_config)
        for name, layer in model.named_modules():
            if hasattr(layer, "lora_A") and self.struck(name):
                self.strike(layer)
        return count

    def struck(self, name: str) -> bool:
        raise NotImplementedError

    def strike(self, layer: Any) -> None:
        raise NotImplementedError
