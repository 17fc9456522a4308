"""Known-bad twins of failed adaptation: a call that fails leaves a model that is half adapted, frozen or unhooked."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from tests.baselines.model import RightModel
from tests.known_bad import breaks
from tests.known_bad.model.spoiled_patch import MODEL


@breaks("MOD-FAILED-INTACT", says="was refused and changed", source="each layer checked when its turn comes", **MODEL)
class AdaptsUntilALayerFails(RightModel):
    def check(self, module: nn.Module, config: Any) -> None:
        pass


@breaks(
    "MOD-FAILED-INTACT", says="was refused and changed", source="a model frozen before its layers are checked", **MODEL
)
class FreezesBeforeItChecks(RightModel):
    def chosen(self, model: nn.Module, config: Any) -> list[nn.Module]:
        found = super().chosen(model, config)
        self.freeze(model, found)
        return found


@breaks("MOD-FAILED-INTACT", says="no longer removes it", source="a model restored from copies of its dicts", **MODEL)
class RestoresCopiesOfHooks(RightModel):
    def apply_lora_to_linear_modules(self, model: nn.Module, peft_config: Any) -> Any:
        before = [(module, copy.copy(module._forward_hooks)) for module in model.modules()]
        try:
            return super().apply_lora_to_linear_modules(model, peft_config)
        except ValueError:
            for module, hooks in before:
                module._forward_hooks = hooks
            raise


@breaks("MOD-FAILED-INTACT", says="raised RuntimeError: expected a ValueError", source="an error of torch", **MODEL)
class FailsByAccident(RightModel):
    def check(self, module: nn.Module, config: Any) -> None:
        try:
            super().check(module, config)
        except ValueError as error:
            raise RuntimeError("only tensors of floating point dtype can require gradients") from error
