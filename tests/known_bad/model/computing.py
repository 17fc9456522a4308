"""Known-bad twins of what a patched layer computes, and of its dropout."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import linear

import reference
from tests.known_bad import breaks
from tests.known_bad.model.keeping import HALF, MODEL, AfterPatching, ChangesOptions, reclassed


def update(layer: Any, x: Tensor) -> Tensor:
    """`s·(x Aᵀ) Bᵀ` of a patched layer."""
    return linear(linear(x, layer.lora_A.weight), layer.lora_B.weight) * layer.scale


class Computes(AfterPatching):
    """A patched layer whose forward is `compute(layer, x)`."""

    def spoil(self, layer: Any, options: Any) -> None:
        compute = self.compute

        def forward(layer: Any, x: Tensor) -> Tensor:
            return compute(layer, x)

        reclassed(layer, forward=forward)

    def compute(self, layer: Any, x: Tensor) -> Tensor:
        return linear(x, layer.weight, layer.bias) + update(layer, x)


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


def _dropped(layer: Any, x: Tensor, active: bool) -> Tensor:
    return reference.lora_linear(
        x, layer.weight, layer.bias, layer.lora_A.weight, layer.lora_B.weight, layer.scale,
        dropout=layer.dropout_p, dropout_position=layer.dropout_position, training=active,
    )  # fmt: skip


@breaks("MOD-DROP-EVAL", says="worst    y[", source="NVIDIA-NeMo/Automodel fe1644ede (DR2)", **MODEL)
class AttachesADropoutInTraining(Computes):
    def spoil(self, layer: Any, options: Any) -> None:
        layer.lora_dropout = nn.Dropout(layer.dropout_p)
        super().spoil(layer, options)

    def compute(self, layer: Any, x: Tensor) -> Tensor:
        return _dropped(layer, x, layer.lora_dropout.training)


@breaks("MOD-DROP-RATE", says="0.0% of the update is dropped", source="pytorch/torchtune #995 (DR1)", **MODEL)
class LosesTheDropout(ChangesOptions):
    def changed(self, options: Any) -> Any:
        return {**options, "dropout": 0.0}


@breaks("MOD-DROP-RATE", says="of the update is dropped with", **MODEL)
class KeepsWhatItShouldDrop(AfterPatching):
    def spoil(self, layer: Any, options: Any) -> None:
        layer.dropout_p = 1 - layer.dropout_p if layer.dropout_p else 0.0


@breaks("MOD-DROP-RATE", says="kept values are off", **MODEL)
class DoesNotRescale(Computes):
    def compute(self, layer: Any, x: Tensor) -> Tensor:
        base = linear(x, layer.weight, layer.bias)
        kept = 1 - layer.dropout_p if layer.training else 1.0
        return base + (_dropped(layer, x, layer.training) - base) * kept


@breaks("MOD-DROP-MODE", says="after train(", **MODEL)
class KeepsTheModeItWasPatchedIn(Computes):
    def spoil(self, layer: Any, options: Any) -> None:
        layer.mode = layer.training
        super().spoil(layer, options)

    def compute(self, layer: Any, x: Tensor) -> Tensor:
        return _dropped(layer, x, layer.mode)


@breaks("MOD-DROP-POSITION", says="one by one", **MODEL)
class AlwaysDropsAfter(ChangesOptions):
    def changed(self, options: Any) -> Any:
        return {**options, "dropout_position": "post"} if options.get("dropout_position") == "pre" else options


@breaks("MOD-OPTIONS", says="alpha/dim of the config", **MODEL)
class RoundsTheScale(AfterPatching):
    def spoil(self, layer: Any, options: Any) -> None:
        layer.scale = round(layer.scale, 2)


@breaks("MOD-OPTIONS", says="alpha/dim of the config", **MODEL)
class TakesWholeAlphasOnly(ChangesOptions):
    def changed(self, options: Any) -> Any:
        return {**options, "alpha": max(int(options["alpha"]), 1)} if "alpha" in options else options


@breaks("MOD-DORA", says="the weight's rows have norms", **MODEL)
class TakesTheColumnsOfASquare(AfterPatching):
    def spoil(self, layer: Any, options: Any) -> None:
        rows, features = layer.weight.shape
        if getattr(layer, "lora_magnitude", None) is not None and rows == features:
            layer.lora_magnitude.data.copy_(layer.weight.norm(dim=0))
