"""Known-bad twins of adapted architectures: a transformers model gets wrong adapters, or computes something else."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import gelu, linear

from tests.baselines.fused_model import FusedMlp, FusedProjections
from tests.baselines.model import RightModel
from tests.known_bad import breaks
from tests.known_bad.model.spoiled_patch import ALL, MODEL, AfterPatching, ByName, reclassed


@breaks("MOD-ARCH-COUNT", says="no adapter in model.layers.0.self_attn.k_proj", **MODEL)
class MissesKProj(RightModel):
    def may_patch(self, name: str) -> bool:
        return super().may_patch(name) and not name.endswith("k_proj")


@breaks("MOD-ARCH-COUNT", says="which was not to have one", **MODEL)
class AdaptsAHeadWhateverTheModel(RightModel):
    """The head of a model of transformers; if it took every model's head, it would follow another convention."""

    def apply_lora_to_linear_modules(self, model: nn.Module, peft_config: Any) -> Any:
        count = super().apply_lora_to_linear_modules(model, peft_config)
        head = getattr(model, "lm_head", None)
        known = hasattr(getattr(model, "config", None), "vocab_size")
        if known and peft_config.match_all_linear and head is not None and not hasattr(head, "lora_A"):
            self.patch(head, peft_config)
            count += 1
        return count


@breaks("MOD-ARCH-COUNT", says="no adapter in transformer.h.0.attn.c_proj", **MODEL)
class TakesConv1DOfUnequalSizes(RightModel):
    """Conv1D layers with a square weight get no adapter."""

    def chosen(self, model: nn.Module, config: Any) -> list[nn.Module]:
        return [m for m in super().chosen(model, config) if isinstance(m, nn.Linear) or len({*m.weight.shape}) > 1]  # type: ignore[misc,union-attr]


@breaks("MOD-ARCH-FREEZE", says="norm.weight is trainable", **MODEL)
class TrainsNorms(RightModel):
    def trains(self, name: str) -> bool:
        return super().trains(name) or "norm" in name.lower()


@breaks("MOD-ARCH-FREEZE", says="is trainable in a", **MODEL)
class FreezesWhatItKnows(RightModel):
    """Only layers of known classes are frozen; experts, routers and Conv1D are not."""

    def freeze(self, model: nn.Module, chosen: list[nn.Module]) -> None:
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Embedding | nn.LayerNorm) or "Norm" in type(module).__name__:
                module.requires_grad_(False)


@breaks("MOD-ARCH-FREEZE", says="numbers are trainable in a", **MODEL)
class MakesLargerAdapters(RightModel):
    """The adapters' rank is doubled in layers with fewer outputs than inputs, such as grouped keys and values."""

    def patch(self, module: Any, config: Any) -> None:
        super().patch(module, config)
        if module.out_features < module.in_features:
            module.lora_A = nn.Linear(module.in_features, 2 * config.dim, bias=False)


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


@breaks("MOD-ARCH-FWD", says="as if the adapter term were missing", **ALL)
class LeavesConv1DToTheBase(ByName):
    def struck(self, name: str) -> bool:
        return "c_" in name

    def strike(self, layer: Any) -> None:
        reclassed(layer, forward=lambda layer, x: layer.base_product(x))


@breaks("MOD-ARCH-FWD", says="something else in it has changed", **ALL)
class DrawsNormsAgain(RightModel):
    def apply_lora_to_linear_modules(self, model: nn.Module, peft_config: Any) -> Any:
        count = super().apply_lora_to_linear_modules(model, peft_config)
        for name, parameter in model.named_parameters():
            if "norm" in name.lower() or "ln_" in name:
                parameter.data.mul_(1.01)
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


@breaks("MOD-ARCH-FWD", says="the model did not call it", **ALL)
class AdaptsACopyOfALayer(RightModel):
    """The model still calls the unadapted layer."""

    def apply_lora_to_linear_modules(self, model: nn.Module, peft_config: Any) -> Any:
        count = super().apply_lora_to_linear_modules(model, peft_config)
        for module in model.modules():
            if type(module).__name__.endswith("Attention") and hasattr(module, "k_proj"):
                layer: Any = module.k_proj
                module.forward = _with(module, layer)  # type: ignore[assignment]
        return count


@breaks("MOD-ARCH-FWD", says="as if the gate_proj adapter term were missing", **MODEL)
class FusesAnMlpWithoutTheGatesAdapter(FusedMlp):
    def fused(self, x: Tensor, gate: Any, up: Any, down: Any) -> Tensor:
        return self.project(down, self.activated(linear(x, gate.weight, gate.bias)) * self.project(up, x))


@breaks("MOD-ARCH-FWD", says="mlp was judged as a whole", **MODEL)
class FusesAnMlpWithAnotherActivation(FusedMlp):
    def activated(self, e: Tensor) -> Tensor:
        return gelu(e)


@breaks("MOD-ARCH-FWD", says="self_attn was judged as a whole", **MODEL)
class FusesValuesInThePlaceOfKeys(FusedProjections):
    def parts(self, x: Tensor, *layers: Any) -> tuple[Tensor, ...]:
        q, k, v = super().parts(x, *layers)
        return q, v, k


@breaks("MOD-ARCH-MINILM", says="no adapter in encoder.layer.", **MODEL)
class AdaptsThirtyLayersAtMost(RightModel):
    def chosen(self, model: nn.Module, config: Any) -> list[nn.Module]:
        return super().chosen(model, config)[:30]
