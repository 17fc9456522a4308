"""Known-bad twins that only a whole model shows: names, norms, experts, recomputing, autocast, many steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

import reference
from tests.baselines.model import RightModel
from tests.known_bad import breaks
from tests.known_bad.model.computing import Computes, update
from tests.known_bad.model.keeping import MODEL, AfterPatching, reclassed

ALL = {**MODEL, "dtypes": ("float64", "float32", "bfloat16")}


class ByName(RightModel):
    """Right, but for what `strike` does to adapted layers of some names."""

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


@breaks("MOD-ARCH-COUNT", says="no adapter in model.layers.0.self_attn.k_proj", **MODEL)
class MissesKProj(RightModel):
    def may_patch(self, name: str) -> bool:
        return super().may_patch(name) and not name.endswith("k_proj")


@breaks("MOD-ARCH-COUNT", says="which was not to have one", **MODEL)
class AdaptsAHeadWhateverTheModel(RightModel):
    def apply_lora_to_linear_modules(self, model: nn.Module, peft_config: Any) -> Any:
        count = super().apply_lora_to_linear_modules(model, peft_config)
        head = getattr(model, "lm_head", None)
        if peft_config.match_all_linear and head is not None and not hasattr(head, "lora_A"):
            self.patch(head, peft_config)
            count += 1
        return count


@breaks("MOD-ARCH-COUNT", says="an adapter in transformer.h.0.attn.c_attn", **MODEL)
class TakesConv1D(RightModel):
    """Takes whatever has a matrix for a weight and a name that matches."""

    def chosen(self, model: nn.Module, config: Any) -> list[nn.Module]:
        found = super().chosen(model, config)
        return found + [
            m
            for name, m in model.named_modules()
            if type(m).__name__ == "Conv1D" and any(reference.wildcard_match(p, name) for p in config.target_modules)
        ]

    def patch(self, module: nn.Module, config: Any) -> None:
        if isinstance(module, nn.Linear):
            super().patch(module, config)
            return
        K, N = module.weight.shape  # type: ignore[misc, union-attr]
        module.lora_A = nn.Linear(K, config.dim, bias=False)  # type: ignore[arg-type]
        module.lora_B = nn.Linear(config.dim, N, bias=False)  # type: ignore[arg-type]


@breaks("MOD-ARCH-FREEZE", says="norm.weight is trainable", **MODEL)
class TrainsNorms(RightModel):
    def trains(self, name: str) -> bool:
        return super().trains(name) or "norm" in name.lower()


@breaks("MOD-ARCH-FREEZE", says="is trainable in a", **MODEL)
class FreezesWhatItKnows(RightModel):
    """Freezes layers by their class, and experts, routers and Conv1D are of none that it knows."""

    def freeze(self, model: nn.Module, chosen: list[nn.Module]) -> None:
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Embedding | nn.LayerNorm) or "Norm" in type(module).__name__:
                module.requires_grad_(False)


@breaks("MOD-ARCH-FREEZE", says="numbers are trainable in a", **MODEL)
class MakesLargerAdapters(RightModel):
    """In a layer whose output is narrower than its input, as with grouped keys and values."""

    def patch(self, module: Any, config: Any) -> None:
        super().patch(module, config)
        if module.out_features < module.in_features:
            module.lora_A = nn.Linear(module.in_features, 2 * config.dim, bias=False)


@breaks("MOD-ARCH-BWD", says="was used and no gradient reached its output", **ALL)
class DetachesTheKeys(ByName):
    def struck(self, name: str) -> bool:
        return name.endswith(("k_proj", "key"))

    def strike(self, layer: Any) -> None:
        layer.register_forward_hook(lambda _, __, y: y.detach())


@breaks("MOD-ARCH-TIED", says="no longer have one weight", **MODEL)
class UntiesTheHead(AfterPatching):
    def spoil(self, layer: Any, options: Any) -> None:
        layer.weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=False)


@breaks("MOD-ARCH-FWD", says="as if the adapter term were missing", **ALL)
class LeavesExpertsToTheBase(ByName):
    def struck(self, name: str) -> bool:
        return "expert" in name

    def strike(self, layer: Any) -> None:
        reclassed(layer, forward=lambda layer, x: linear(x, layer.weight, layer.bias))


@breaks("MOD-ARCH-FWD", says="something else in it has changed", **ALL)
class DrawsNormsAgain(RightModel):
    def apply_lora_to_linear_modules(self, model: nn.Module, peft_config: Any) -> Any:
        count = super().apply_lora_to_linear_modules(model, peft_config)
        for name, parameter in model.named_parameters():
            if "norm" in name.lower() or "ln_" in name:
                parameter.data.mul_(1.01)
        return count


@breaks("MOD-ARCH-FWD", says="the model did not call it", **ALL)
class AdaptsACopyOfALayer(RightModel):
    """The model goes on calling the one that it had."""

    def apply_lora_to_linear_modules(self, model: nn.Module, peft_config: Any) -> Any:
        count = super().apply_lora_to_linear_modules(model, peft_config)
        for module in model.modules():
            if type(module).__name__.endswith("Attention") and hasattr(module, "k_proj"):
                layer: Any = module.k_proj
                module.forward = _with(module, layer)  # type: ignore[assignment]
        return count


def _with(module: Any, layer: Any) -> Any:
    forward = type(module).forward

    def call(*args: Any, **options: Any) -> Any:
        plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
        plain.weight, plain.bias = layer.weight, layer.bias
        module.k_proj = plain
        try:
            return forward(module, *args, **options)
        finally:
            module.k_proj = layer

    return call


@breaks("MOD-ARCH-MINILM", says="no adapter in encoder.layer.", **MODEL)
class AdaptsThirtyLayersAtMost(RightModel):
    def chosen(self, model: nn.Module, config: Any) -> list[nn.Module]:
        return super().chosen(model, config)[:30]


class _Weighed(torch.autograd.Function):
    """The identity, whose gradient is multiplied."""

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
    """What is divided by K should have been by N: the same in square layers."""

    def struck(self, name: str) -> bool:
        return name.endswith(("k_proj", "wi"))

    def strike(self, layer: Any) -> None:
        reclassed(layer, forward=lambda layer, x: _weighed(layer, x, layer.out_features / layer.in_features))


@breaks("MOD-ARCH-BWD", says="is frozen and got a gradient", **ALL)
class TrainsWhatItAdapts(ByName):
    def struck(self, name: str) -> bool:
        return True

    def strike(self, layer: Any) -> None:
        layer.weight.requires_grad_(True)


@breaks("MOD-ARCH-CHECKPOINT", says="lora_A.weight got no gradient", **MODEL)
class KeepsWhatItComputedBefore(Computes):
    """Keeps x Aᵀ of a pass without gradients for the next one, which checkpointing makes with them."""

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
