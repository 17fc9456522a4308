"""Known-bad twins of untouched modules: a config changes other modules, look-alikes, or a refused model."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from tests.baselines.model import RightModel
from tests.known_bad import breaks
from tests.known_bad.model.spoiled_patch import HALF, MODEL


@breaks("MOD-LEAVES-REST", says="put another object in the place of", source="PEFT replaces modules", **MODEL)
class ReplacesChosenModules(RightModel):
    def chosen(self, model: nn.Module, config: Any) -> list[nn.Module]:
        found = super().chosen(model, config)
        names = {m: [n for n, other in self.named(model) if other is m] for m in found}
        if any(hasattr(m, "lora_A") or names[m] == [""] for m in found):
            return found
        return [self.replaced(model, m, names[m]) for m in found]

    def replaced(self, model: nn.Module, module: nn.Module, names: list[str]) -> nn.Module:
        new = copy.copy(module)
        for held in ("_parameters", "_modules", "_buffers"):
            setattr(new, held, dict(getattr(module, held)))
        for name in names:
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, new)
        return new


@breaks("MOD-LEAVES-REST", says="of the hooks on blocks.0.fc2 and embed", **MODEL)
class SilencesHooksOfChosenModules(RightModel):
    def patch(self, module: nn.Module, config: Any) -> None:
        super().patch(module, config)
        kept, module._forward_hooks = module._forward_hooks, type(module._forward_hooks)()
        for hook in kept.values():
            module.register_forward_hook(lambda *_, hook=hook: None)  # noqa: ARG005  (the hook is not called)


@breaks("MOD-LEAVES-REST", says="set the training flag of", **MODEL)
class PutsTheModelInTraining(RightModel):
    def freeze(self, model: nn.Module, chosen: Any) -> None:
        super().freeze(model, chosen)
        model.train()


@breaks("MOD-LEAVES-REST", says="set the training flag of", **MODEL)
class PutsTheModelInEval(RightModel):
    def freeze(self, model: nn.Module, chosen: Any) -> None:
        super().freeze(model, chosen)
        model.eval()


@breaks(
    "MOD-LEAVES-REST", says="expected torch.bfloat16 and equal", source="PEFT prepare_model_for_kbit_training", **HALF
)
class CastsNorms(RightModel):
    def freeze(self, model: nn.Module, chosen: Any) -> None:
        super().freeze(model, chosen)
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.float()


@breaks("MOD-LEAVES-REST", says="changed the rate of a dropout module", **MODEL)
class SwitchesDropoutOff(RightModel):
    def freeze(self, model: nn.Module, chosen: Any) -> None:
        super().freeze(model, chosen)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0


@breaks(
    "MOD-LOOKALIKE", says="is trainable: expected the opposite", source="PEFT: `lora_` in a parameter's name", **MODEL
)
class TrainsWhatIsCalledLora(RightModel):
    def trains(self, name: str) -> bool:
        return "lora" in name


@breaks("MOD-LOOKALIKE", says="logit_scale is trainable: expected the opposite", **MODEL)
class LeavesScalarsTrainable(RightModel):
    def freeze(self, model: nn.Module, chosen: Any) -> None:
        for parameter in model.parameters():
            if parameter.ndim:
                parameter.requires_grad_(False)


@breaks("MOD-LOOKALIKE", says="explorator, lora_model.* and fc1 chose", source="concrete-ml (HY1)", **MODEL)
class PassesOverWhatIsCalledLora(RightModel):
    def may_patch(self, name: str) -> bool:
        return "lora" not in name


@breaks("MOD-REFUSED-MODEL", says="and then raised", **MODEL)
class RefusesHalfWay(RightModel):
    def chosen(self, model: nn.Module, config: Any) -> list[nn.Module]:
        found = super().chosen(model, config)
        if any(hasattr(module, "lora_A") for module in found):
            for module in found:
                if hasattr(module, "lora_A"):
                    self.meets_adapted(module)
                self.patch(module, config)
        return found


@breaks("MOD-REFUSED-MODEL", says="froze", **MODEL)
class FreezesBeforeItLooks(RightModel):
    def apply_lora_to_linear_modules(self, model: nn.Module, peft_config: Any) -> Any:
        model.requires_grad_(False)
        return super().apply_lora_to_linear_modules(model, peft_config)
