"""Right but different ways to save and load adapters."""

from __future__ import annotations

from typing import Any

from tests.baselines.checkpoint import Right


class TakesTheScaleOver(Right):
    """Takes the scale from the file, where the reference refuses a model with another scale."""

    def check_layer(self, layer, config):
        if layer.dim != config.dim:
            raise ValueError(f"the model has rank {layer.dim}: expected {config.dim}")
        self.taken = config

    def copy(self, layers, named):
        super().copy(layers, named)
        for layer in layers.values():
            layer.alpha, layer.use_rslora = self.taken.alpha, self.taken.use_rslora
            layer.scale = layer.alpha / (layer.dim**0.5 if layer.use_rslora else layer.dim)


class ListsTargetsAsRegistered(Right):
    """Lists target modules in the model's order, unless another module's name ends with one of these names."""

    def targets(self, config, model, names):
        ends = tuple(f".{name}" for name in names)
        if any(name.endswith(ends) for name, _ in model.named_modules()):
            return super().targets(config, model, names)
        return list(self.layers(model))


VARIANTS: dict[str, Any] = {kind.__name__: kind() for kind in (Right, TakesTheScaleOver, ListsTargetsAsRegistered)}
