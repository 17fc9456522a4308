"""Known-bad twins of `apply_lora_to_linear_modules`: count, freezing, sharing, options, training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from tests.baselines.model import RightModel
from tests.known_bad import breaks
from tests.known_bad.model.computing import Computes, update
from tests.known_bad.model.keeping import MODEL, AfterPatching, reclassed


@breaks("MOD-COUNT", says="returned None", **MODEL)
class ReturnsNothing(RightModel):
    def count(self, chosen: Any) -> Any:
        return None


@breaks("MOD-COUNT", says="returned", **MODEL)
class CountsAdapterMatrices(RightModel):
    def count(self, chosen: Any) -> Any:
        return 2 * len(chosen)


@breaks("MOD-COUNT", says="patched", **MODEL)
class PatchesAdaptersOfAdapters(RightModel):
    def apply_lora_to_linear_modules(self, model: nn.Module, peft_config: Any) -> Any:
        count = super().apply_lora_to_linear_modules(model, peft_config)
        if peft_config.match_all_linear:
            for module in list(model.modules()):
                if isinstance(module, nn.Linear) and not hasattr(module, "lora_A"):
                    self.patch(module, peft_config)
        return count


@breaks("MOD-COUNT", says="patched", **MODEL)
class SkipsTheLastLayer(RightModel):
    def named(self, model: nn.Module) -> Any:
        return super().named(model)[:-1]


@breaks("MOD-FREEZE", says="embed.weight is trainable", source="NVIDIA-NeMo/Automodel #77 (FR1)", **MODEL)
class FreezesChosenLayersOnly(RightModel):
    def freeze(self, model: nn.Module, chosen: list[nn.Module]) -> None:
        for module in chosen:
            module.requires_grad_(False)


@breaks("MOD-FREEZE", says="bias is trainable", **MODEL)
class LeavesBiasesTrainable(RightModel):
    def trains(self, name: str) -> bool:
        return super().trains(name) or name.endswith("bias")


@breaks("MOD-FREEZE", says="gain is trainable after", **MODEL)
class FreezesLinearLayersOnly(RightModel):
    def freeze(self, model: nn.Module, chosen: list[nn.Module]) -> None:
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                module.requires_grad_(False)


@breaks("MOD-FREEZE", says="gain is trainable", **MODEL)
class FreezesModulesByTheirChildren(RightModel):
    def freeze(self, model: nn.Module, chosen: list[nn.Module]) -> None:
        for module in model.modules():
            if not list(module.children()):
                module.requires_grad_(False)


@breaks("MOD-FREEZE-EMPTY", says="is trainable after", **MODEL)
class ReturnsEarly(RightModel):
    def freeze(self, model: nn.Module, chosen: list[nn.Module]) -> None:
        if chosen:
            super().freeze(model, chosen)


def _thawing_train(layer: Any, mode: bool = True) -> Any:
    layer.weight.requires_grad_(not mode)
    return nn.Module.train(layer, mode)


@breaks("MOD-FREEZE-KEPT", says="is trainable after eval()", source="huggingface/peft #2936 (FZ1)", **MODEL)
class ThawsTheWeightInEval(AfterPatching):
    def spoil(self, layer: Any, options: Any) -> None:
        reclassed(layer, train=_thawing_train)


@breaks("MOD-SHARED", says="returned 4, expected 2", **MODEL)
class CountsNames(RightModel):
    names = 0

    def chosen(self, model: nn.Module, config: Any) -> list[nn.Module]:
        found = super().chosen(model, config)
        matcher = self.ModuleMatcher(config.target_modules, config.exclude_modules, config.match_all_linear)
        self.names = sum(self.may_patch(name) and matcher.match(m, name) for name, m in self.named(model))
        return found

    def count(self, chosen: Any) -> Any:
        return self.names


@breaks("MOD-SHARED", says="raised ValueError", **MODEL)
class PatchesEveryName(RightModel):
    def chosen(self, model: nn.Module, config: Any) -> list[nn.Module]:
        matcher = self.ModuleMatcher(config.target_modules, config.exclude_modules, config.match_all_linear)
        return [m for name, m in self.named(model) if self.may_patch(name) and matcher.match(m, name)]


@breaks("MOD-SHARED-ALIAS", says="the layer was not patched", **MODEL)
class SeesTheFirstNameOnly(RightModel):
    def named(self, model: nn.Module) -> Any:
        return list(model.named_modules())


@breaks("MOD-AGAIN", says="returned int: expected ValueError", **MODEL)
class SkipsAdaptedLayers(RightModel):
    def chosen(self, model: nn.Module, config: Any) -> list[nn.Module]:
        return [m for m in super().chosen(model, config) if not hasattr(m, "lora_A")]


@breaks("MOD-AGAIN", says="expected ValueError", **MODEL)
class StartsAdaptersAfresh(RightModel):
    def meets_adapted(self, module: Any) -> None:
        del module.lora_A, module.lora_B
        module.__class__ = nn.Linear


@breaks("MOD-AGAIN", says="replaced parameters before it was refused", source="NeMo Automodel 0.7.0", **MODEL)
class RefusesAfterStartingAfresh(RightModel):
    def meets_adapted(self, module: Any) -> None:
        module.lora_B = nn.Linear(module.lora_B.in_features, module.lora_B.out_features, bias=False)
        super().meets_adapted(module)


@breaks("MOD-SECOND", says="is frozen after", **MODEL)
class FreezesEarlierAdapters(RightModel):
    def unfreeze(self, model: nn.Module) -> None:
        pass


@breaks("MOD-SECOND", says="was replaced by a second config", **MODEL)
class InitialisesEarlierAdapters(RightModel):
    def unfreeze(self, model: nn.Module) -> None:
        for module in model.modules():
            if hasattr(module, "lora_A"):
                weight = module.lora_A.weight  # type: ignore[union-attr]
                module.lora_A.weight = nn.Parameter(torch.zeros_like(weight))  # type: ignore[union-attr]
        super().unfreeze(model)


@breaks(
    "MOD-CONFIG-UNTOUCHED",
    says="changed its target_modules",
    source="pytorch/torchtune bd2a0fc7c (EH2)",
    **MODEL,
)
class AppendsTheOutput(RightModel):
    def chosen(self, model: nn.Module, config: Any) -> list[nn.Module]:
        found = super().chosen(model, config)
        config.target_modules.append("output")
        return found


@breaks("MOD-CONFIG-UNTOUCHED", says="changed its dim", **MODEL)
class UsesUpTheConfig(RightModel):
    def count(self, chosen: Any) -> Any:
        return len(chosen)

    def patch(self, module: nn.Module, config: Any) -> None:
        super().patch(module, config)
        config.dim += 1


@breaks(
    "MOD-REPRODUCIBLE",
    says="lora_A differs",
    source="set() over names: PYTHONHASHSEED decides the order",
    **MODEL,
)
class PatchesInHashOrder(RightModel):
    def named(self, model: nn.Module) -> Any:
        modules = dict(super().named(model))
        # what set() does under one of its hash seeds, here the same in every run
        return sorted(modules.items(), key=lambda item: str(item[0])[::-1])


@breaks("MOD-REPRODUCIBLE", says="lora_A differs", **MODEL)
class SeedsByTheName(RightModel):
    def chosen(self, model: nn.Module, config: Any) -> list[nn.Module]:
        found = super().chosen(model, config)
        torch.manual_seed(sum(map(ord, "".join(name for name, _ in self.named(model)))))
        return found


class Loses(RightModel):
    """An application that does not hand one option on."""

    option: str

    def options(self, c: Any) -> dict[str, Any]:
        return {key: value for key, value in super().options(c).items() if key != self.option}


@breaks("MOD-OPTIONS", says="gave lora_A [8, 256]", **MODEL)
class LosesDim(Loses):
    option = "dim"


@breaks("MOD-OPTIONS", says="alpha/dim of the config", **MODEL)
class LosesAlpha(Loses):
    option = "alpha"


@breaks("MOD-OPTIONS", says='method "uniform"', **MODEL)
class LosesTheMethod(Loses):
    option = "lora_A_init_method"


@breaks("MOD-OPTIONS", says="gave lora_A of torch.float32", **MODEL)
class LosesLoraDtype(Loses):
    option = "lora_dtype"


@breaks("MOD-OPTION-DROPOUT", says="0.0% of the update is dropped", source="pytorch/torchtune #995 (DR1)", **MODEL)
class LosesDropout(Loses):
    option = "dropout"


@breaks("MOD-OPTION-DROPOUT", says="one by one", **MODEL)
class LosesThePosition(Loses):
    option = "dropout_position"


@breaks("MOD-OPTION-RSLORA", says="the layer's scale is", source="exllamav2 #619 (SC2)", **MODEL)
class LosesRslora(Loses):
    option = "use_rslora"


@breaks("MOD-OPTION-DORA", says="has no lora_magnitude", **MODEL)
class LosesDora(Loses):
    option = "use_dora"


@breaks("MOD-OPTION-DORA", says="lora_magnitude is frozen", **MODEL)
class FreezesMagnitudes(RightModel):
    def unfreeze(self, model: nn.Module) -> None:
        super().unfreeze(model)
        for name, parameter in model.named_parameters():
            if name.endswith("lora_magnitude"):
                parameter.requires_grad_(False)


@breaks("MOD-BARE-LINEAR", says="returned 0", **MODEL)
class LooksBelowTheModelOnly(RightModel):
    def may_patch(self, name: str) -> bool:
        return super().may_patch(name) and name != ""


@breaks("MOD-STEP", says="left blocks.0", **MODEL)
class DetachesLoraA(Computes):
    def compute(self, layer: Any, x: Tensor) -> Tensor:
        down = linear(x, layer.lora_A.weight.detach())
        return linear(x, layer.weight, layer.bias) + linear(down, layer.lora_B.weight) * layer.scale


@breaks("MOD-STEP", says="which is no adapter", **MODEL)
class MergesWhileItTrains(Computes):
    def compute(self, layer: Any, x: Tensor) -> Tensor:
        y = super().compute(layer, x)
        with torch.no_grad():
            layer.weight.data = layer.weight + 0.1 * layer.lora_B.weight @ layer.lora_A.weight
        return y


@breaks("MOD-STEP-LOSS", says="12 AdamW steps took the loss from", **MODEL)
class TurnsTheGradientRound(Computes):
    def compute(self, layer: Any, x: Tensor) -> Tensor:
        up = update(layer, x)
        return linear(x, layer.weight, layer.bias) + 2 * up.detach() - up
