"""Known-bad twins of loaded layers: a layer loaded from PEFT's files has the wrong scale, orientation or tensors."""

from __future__ import annotations

from torch import nn

import reference
from tests.baselines.checkpoint import Right
from tests.baselines.checkpoint import checkpoint_breaks as breaks


@breaks("CKP-PEFT", says="worst    y", source="sgl-project/sglang #40835, vllm-project/vllm #55545")
class IgnoresRslora(Right):
    def check_layer(self, layer, config):
        layer.scale = config.alpha / config.dim


@breaks("CKP-PEFT", says="worst    y", source="ohdearquant/lattice #261")
class TakesTheRankForAlpha(Right):
    def check_layer(self, layer, config):
        layer.scale = 1.0


@breaks("CKP-PEFT", says="worst    y")
class ScalesWhatItLoads(Right):
    def copy_one(self, layer, part, own, value):
        own.copy_(value * layer.scale if part == "lora_B.weight" else value)


@breaks("CKP-PEFT", says="worst    y")
class TransposesSquares(Right):
    def copy_one(self, layer, part, own, value):
        square = value.ndim == 2 and value.shape[0] == value.shape[1]
        own.copy_(value.T if square else value)


@breaks("CKP-SCALE", says="worst    y", source="KadoBOT/ComfyUI-YuE2-Voices #17")
class KeepsTheModelsScale(Right):
    def check_layer(self, layer, config):
        pass


@breaks("CKP-SCALE", says="worst    y", source="sgl-project/sglang #16935")
class IgnoresAlphaPattern(Right):
    def check_fields(self, values):
        super().check_fields({key: value for key, value in values.items() if key != "alpha_pattern"})

    def check_layer(self, layer, config):
        layer.scale = config.alpha / (config.dim**0.5 if config.use_rslora else config.dim)


class IgnoresWhatItDoesNotKnow(Right):
    """Loading skips unknown fields and tensors, like strict=False."""

    def check_fields(self, values):
        pass

    def meets_tensor(self, key):
        pass

    def meets_plain(self, model, named, config):
        return config

    def meets_names(self, name):
        pass

    def copy(self, layers, named):
        super().copy({name: layer for name, layer in layers.items() if name in named}, named)


breaks("CKP-EMBEDDING", says="refused nothing, and the output is off")(IgnoresWhatItDoesNotKnow)
breaks("CKP-UNEXPECTED", says="raised nothing: expected an error")(IgnoresWhatItDoesNotKnow)
breaks("CKP-PREFIX", says="raised nothing: expected an error")(IgnoresWhatItDoesNotKnow)


@breaks("CKP-CONV1D", says="refused nothing, and the output is off")
class TakesConv1DForLinear(IgnoresWhatItDoesNotKnow):
    def meets_plain(self, model, named, config):
        conv = model.inner.proj
        linear = nn.Linear(*conv.weight.shape, dtype=conv.weight.dtype)
        linear.weight, linear.bias = conv.weight, conv.bias
        model.inner.proj = reference.LinearLoRA(linear, config.dim, config.alpha)
        self.copy(self.layers(model), named)
        return config
