"""Known-bad twins of architecture training: a transformers model trains with wrong gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from tests.baselines.fused_model import FusedMlp, FusedProjections
from tests.known_bad import breaks
from tests.known_bad.model.spoiled_patch import ALL, MODEL, ByName, Computes, reclassed, update


@breaks("MOD-ARCH-BWD", says="was used and no gradient reached its output", **ALL)
class DetachesTheKeys(ByName):
    def struck(self, name: str) -> bool:
        return name.endswith(("k_proj", "key"))

    def strike(self, layer: Any) -> None:
        layer.register_forward_hook(lambda _, __, y: y.detach())


class _Weighed(torch.autograd.Function):
    """The identity; its backward multiplies the gradient by a factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return g * ctx.factor, None


def _weighed(layer: Any, x: Tensor, factor: float) -> Tensor:
    down = linear(x, _Weighed.apply(layer.lora_A.weight, factor))
    return linear(x, layer.weight, layer.bias) + linear(down, layer.lora_B.weight) * layer.scale


@breaks("MOD-ARCH-BWD", says="k_proj: dA", **ALL)
class ScalesByTheWrongWidth(ByName):
    """The gradient of A has a factor N/K, which is 1 in square layers."""

    def struck(self, name: str) -> bool:
        return name.endswith(("k_proj", "wi"))

    def strike(self, layer: Any) -> None:
        reclassed(layer, forward=lambda layer, x: _weighed(layer, x, layer.out_features / layer.in_features))


@breaks("MOD-ARCH-BWD", says="dX", **MODEL)
class FusesAnMlpWithTheGradientOfOneBranch(FusedMlp):
    """x gets the gradient through gate alone."""

    def fused(self, x: Tensor, gate: Any, up: Any, down: Any) -> Tensor:
        return self.project(down, self.activated(self.project(gate, x)) * self.project(up, x.detach()))


@breaks("MOD-ARCH-BWD", says="mlp: dA of", **MODEL)
class FusesAnMlpWithTheGradientOfAHalved(FusedMlp):
    def project(self, layer: Any, x: Tensor) -> Tensor:
        return _weighed(layer, x, 0.5)


@breaks("MOD-ARCH-BWD", says="self_attn: dB of", **MODEL)
class FusesProjectionsWithoutTheScaleInDB(FusedProjections):
    def parts(self, x: Tensor, *layers: Any) -> tuple[Tensor, ...]:
        return tuple(
            linear(x, layer.weight, layer.bias)
            + linear(linear(x, layer.lora_A.weight), _Weighed.apply(layer.lora_B.weight, 1 / layer.scale)) * layer.scale
            for layer in layers
        )


@breaks("MOD-ARCH-BWD", says="is frozen and got a gradient", **ALL)
class TrainsWhatItAdapts(ByName):
    def struck(self, name: str) -> bool:
        return True

    def strike(self, layer: Any) -> None:
        layer.weight.requires_grad_(True)


@breaks("MOD-ARCH-CHECKPOINT", says="lora_A.weight got no gradient", **MODEL)
class KeepsWhatItComputedBefore(Computes):
    """x Aᵀ of a pass without gradients is reused in the next pass, which under checkpointing needs gradients."""

    def compute(self, layer: Any, x: Tensor) -> Tensor:
        kept = layer.__dict__.pop("kept", None)
        if kept is None or not torch.is_grad_enabled() or kept.shape[:-1] != x.shape[:-1]:
            kept = linear(x, layer.lora_A.weight)
            if not torch.is_grad_enabled():
                layer.kept = kept.detach()
        return linear(x, layer.weight, layer.bias) + linear(kept, layer.lora_B.weight) * layer.scale


@breaks("MOD-ARCH-AUTOCAST", says="dA", **MODEL)
class ScalesTheGradientUnderAutocast(Computes):
    def compute(self, layer: Any, x: Tensor) -> Tensor:
        factor = 1.03 if torch.is_autocast_enabled(x.device.type) else 1.0
        return _weighed(layer, x, factor)


@breaks("MOD-ARCH-ACCUM", says="mlp: dA of", **MODEL)
class FusesAnMlpThatStartsAfresh(FusedMlp):
    def fused(self, x: Tensor, gate: Any, up: Any, down: Any) -> Tensor:
        for layer in (gate, up, down) if torch.is_grad_enabled() else ():
            layer.lora_A.weight.grad = None
        return super().fused(x, gate, up, down)


@breaks("MOD-ARCH-ACCUM", says="dA", **MODEL)
class StartsAfreshWithEachForward(Computes):
    def compute(self, layer: Any, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            layer.lora_A.weight.grad = None
        return super().compute(layer, x)


@breaks("MOD-ARCH-CURVE", says="the loss of step 9", **ALL)
class StopsLearningAfterSomeSteps(Computes):
    def compute(self, layer: Any, x: Tensor) -> Tensor:
        layer.calls = layer.__dict__.get("calls", 0) + 1
        up = update(layer, x)
        return linear(x, layer.weight, layer.bias) + (up if layer.calls <= 16 else up.detach() + 0 * up)


@breaks("MOD-ARCH-COMPILE", says="compiled, ", **ALL)
class ForgetsXInCompiledCode(Computes):
    def compute(self, layer: Any, x: Tensor) -> Tensor:
        return _weighed(layer, x, 0.0 if torch.compiler.is_compiling() else 1.0)


@breaks("MOD-ARCH-COMPILE", says="compiled, the loss is", **ALL)
class ForgetsTheScaleInCompiledCode(Computes):
    def compute(self, layer: Any, x: Tensor) -> Tensor:
        factor = 1 / layer.scale if torch.compiler.is_compiling() else 1.0
        return linear(x, layer.weight, layer.bias) + update(layer, x) * factor
