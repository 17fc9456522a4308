"""Known-bad twins of patched layer: a patched layer computes a wrong output or gradient."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import linear

from tests.known_bad import breaks
from tests.known_bad.model.spoiled_patch import HALF, MODEL, AfterPatching, Computes, update


@breaks("MOD-FRESH", says="worst    y[", **MODEL)
@breaks("MOD-INIT-B", says="lora_B is not zero", **MODEL)
class DrawsLoraBToo(AfterPatching):
    def spoil(self, layer: Any, options: Any) -> None:
        if not layer.lora_B.weight.is_meta:
            nn.init.ones_(layer.lora_B.weight)


@breaks("MOD-FRESH", says="zeros", **MODEL)
class ForgetsTheBase(Computes):
    def compute(self, layer: Any, x: Tensor) -> Tensor:
        return update(layer, x)


@breaks("MOD-FWD", says="the adapter term", source="Blaizzy/mlx-vlm #845 (SC1)", **MODEL)
class ScalesByAlphaAlone(AfterPatching):
    def spoil(self, layer: Any, options: Any) -> None:
        layer.scale = layer.alpha


@breaks("MOD-FWD", says="added twice", source="huggingface/peft #878 (FW1)", **MODEL)
class AddsTheUpdateTwiceWithTriton(Computes):
    def spoil(self, layer: Any, options: Any) -> None:
        if options.get("use_triton"):
            super().spoil(layer, options)

    def compute(self, layer: Any, x: Tensor) -> Tensor:
        return super().compute(layer, x) + update(layer, x)


@breaks("MOD-FWD", says="as if the bias term were missing", source="pytorch/torchtune #2678 (FW2)", **MODEL)
class ForgetsTheBias(Computes):
    def compute(self, layer: Any, x: Tensor) -> Tensor:
        return linear(x, layer.weight) + update(layer, x)


@breaks("MOD-BWD", says="as if the base term were missing", source="zama-ai/concrete-ml #765 (GR2)", **MODEL)
class DetachesTheBase(Computes):
    def compute(self, layer: Any, x: Tensor) -> Tensor:
        return linear(x.detach(), layer.weight, layer.bias) + update(layer, x)


@breaks("MOD-BWD", says="weight got a gradient", **MODEL)
class TrainsTheWeight(Computes):
    def spoil(self, layer: Any, options: Any) -> None:
        super().spoil(layer, options)
        layer.weight.requires_grad_(True)


@breaks("MOD-BIAS", says="dbias is None", **MODEL)
class DetachesTheBias(Computes):
    def compute(self, layer: Any, x: Tensor) -> Tensor:
        return linear(x, layer.weight, None if layer.bias is None else layer.bias.detach()) + update(layer, x)


@breaks("MOD-MIXED", says="raised RuntimeError", source="unslothai/unsloth dfe2e406b2 (DT1)", **HALF)
class MixesDtypes(Computes):
    pass


@breaks("MOD-MIXED", says="y has dtype torch.float32", **HALF)
class PromotesTheOutput(Computes):
    def compute(self, layer: Any, x: Tensor) -> Tensor:
        return linear(x, layer.weight, layer.bias) + update(layer, x.to(layer.lora_A.weight.dtype))


@breaks("MOD-RSLORA", says="scale is", source="NVIDIA/TensorRT-LLM #1668, exllamav2 #619 (SC2)", **MODEL)
@breaks("MOD-OPTION-RSLORA", says="the layer's scale is", source="NVIDIA/TensorRT-LLM #1668 (SC2)", **MODEL)
class IgnoresRslora(AfterPatching):
    def spoil(self, layer: Any, options: Any) -> None:
        layer.scale = layer.alpha / layer.dim


@breaks("MOD-RSLORA", says="use_rslora=False", **MODEL)
class AlwaysScalesAsRslora(AfterPatching):
    def spoil(self, layer: Any, options: Any) -> None:
        layer.scale = layer.alpha / math.sqrt(layer.dim)


@breaks("MOD-MEMORY", says="dX", **MODEL)
class ForgetsTheUpdateInDx(Computes):
    def spoil(self, layer: Any, options: Any) -> None:
        if options.get("use_memory_efficient_lora"):
            super().spoil(layer, options)

    def compute(self, layer: Any, x: Tensor) -> Tensor:
        return linear(x, layer.weight, layer.bias) + update(layer, x.detach())


@breaks("MOD-OWN-FORWARD", says="the base term is 0.5 times", **MODEL)
class ReplacesTheOwnForward(Computes):
    pass


@breaks("MOD-DORA", says="the weight's rows have norms", **MODEL)
class StartsMagnitudesAtOne(AfterPatching):
    def spoil(self, layer: Any, options: Any) -> None:
        if layer.lora_magnitude is not None:
            nn.init.ones_(layer.lora_magnitude)


@breaks("MOD-DORA", says="lora_magnitude is frozen", **MODEL)
class FreezesTheMagnitude(AfterPatching):
    def spoil(self, layer: Any, options: Any) -> None:
        if layer.lora_magnitude is not None:
            layer.lora_magnitude.requires_grad_(False)


@breaks("MOD-DORA", says="the weight's rows have norms", **MODEL)
class TakesTheColumnsOfASquare(AfterPatching):
    def spoil(self, layer: Any, options: Any) -> None:
        rows, features = layer.weight.shape
        if getattr(layer, "lora_magnitude", None) is not None and rows == features:
            layer.lora_magnitude.data.copy_(layer.weight.norm(dim=0))
