"""Known-bad twins of apply to model: applying a config counts, freezes or shares wrongly."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.baselines.model import RightModel
from tests.known_bad import breaks
from tests.known_bad.model.spoiled_patch import MODEL, AfterPatching, reclassed


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
    source="names in a set(): PYTHONHASHSEED decides the order",
    **MODEL,
)
class PatchesInHashOrder(RightModel):
    def named(self, model: nn.Module) -> Any:
        modules = dict(super().named(model))
        # an order that set() could give under some hash seed, reproducible in every run
        return sorted(modules.items(), key=lambda item: str(item[0])[::-1])


@breaks("MOD-REPRODUCIBLE", says="lora_A differs", **MODEL)
class SeedsByTheName(RightModel):
    def chosen(self, model: nn.Module, config: Any) -> list[nn.Module]:
        found = super().chosen(model, config)
        torch.manual_seed(sum(map(ord, "".join(name for name, _ in self.named(model)))))
        return found


@breaks("MOD-BARE-LINEAR", says="returned 0", **MODEL)
class LooksBelowTheModelOnly(RightModel):
    def may_patch(self, name: str) -> bool:
        return super().may_patch(name) and name != ""


@breaks("MOD-SECOND", says="changed the values of", **MODEL)
class StartsEarlierAdaptersAgain(RightModel):
    def unfreeze(self, model: nn.Module) -> None:
        super().unfreeze(model)
        for module in model.modules():
            if hasattr(module, "lora_B"):
                nn.init.zeros_(module.lora_B.weight)  # type: ignore[arg-type, union-attr]


@breaks("MOD-REPRODUCIBLE", says="lora_A is the same after", **MODEL)
class SeedsTheProcess(RightModel):
    def freeze(self, model: nn.Module, chosen: Any) -> None:
        super().freeze(model, chosen)
        torch.manual_seed(42)


@breaks("MOD-REPRODUCIBLE", says="two layers of one model", **MODEL)
class StartsAllLayersAlike(RightModel):
    seed: int | None = None

    def reset(self) -> None:
        self.seed = None

    def freeze(self, model: nn.Module, chosen: Any) -> None:
        super().freeze(model, chosen)
        self.seed = int(torch.randint(2**31, ()))

    def patch(self, module: nn.Module, config: Any) -> None:
        torch.manual_seed(self.seed or 0)
        super().patch(module, config)
