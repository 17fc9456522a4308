"""Known-bad twins of the lives of models whose adapters, ties, modes or copies come apart."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

import reference
from tests.baselines.lived_model import LivedModel
from tests.known_bad.life.registration import model_twin


@model_twin("LIFE-MODEL-FWD", says="after apply-", source="a second config draws all adapters again")
class DrawsEarlierAdaptersAgain(LivedModel):
    def adopt(self, model: nn.Module, before: dict[str, Any]) -> None:
        for layer in self.layers(model).values():
            layer.init_lora_weights("xavier")


@model_twin("LIFE-MODEL-STATE", says="does not require grad", source="huggingface/peft #3580: a second adapter freezes")
class FreezesEarlierAdapters(LivedModel):
    def adopt(self, model: nn.Module, before: dict[str, Any]) -> None:
        for layer in before:
            model.get_submodule(layer).requires_grad_(False)


@model_twin("LIFE-MODEL-STATE", says="requires grad", source="NeMo Automodel: only the layers of a config are frozen")
class FreezesTheBaseAtTheFirstConfigOnly(LivedModel):
    def apply_lora_to_linear_modules(self, model: nn.Module, peft_config: Any) -> int:
        base = [p for name, p in model.named_parameters() if "lora_" not in name]
        flags = [(p, p.requires_grad) for p in base] if self.layers(model) else []
        count = super().apply_lora_to_linear_modules(model, peft_config)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        return count


@model_twin("LIFE-MODEL-STATE", says="another Parameter", source="an adapted head with a clone of the tied weight")
class ClonesATiedWeight(LivedModel):
    def adapted(self, model: Any, layer: Any) -> None:
        if layer.weight is model.embed.weight:
            layer.weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=False)


class UntiedCopies(reference.LinearLoRA):
    def __deepcopy__(self, memo: Any) -> Any:
        made = type(self).__new__(type(self))
        nn.Module.__init__(made)
        made.__setstate__({name: copy.deepcopy(value) for name, value in self.__dict__.items()})  # without the memo
        return made


@model_twin("LIFE-MODEL-STATE", says="tied", source="huggingface/peft: a copied layer without the memo of the copy")
class UntiesTheHeadOfACopy(LivedModel):
    layer = UntiedCopies


class UntiedConversion(reference.LinearLoRA):
    def _apply(self, function: Any, recurse: bool = True) -> Any:
        found = super()._apply(function, recurse)
        if self.unmerged_weight is None:
            self.weight = nn.Parameter(self.weight.data.clone(), self.weight.requires_grad)
        return found


@model_twin("LIFE-MODEL-STATE", says="another Parameter", source="conversion that makes new Parameters")
class UntiesTheHeadWhenConverted(LivedModel):
    layer = UntiedConversion


@model_twin("LIFE-MODEL-FWD", says="after", source="adapters kept by shape, for all models")
class SharesAdaptersOfOneShape(LivedModel):
    def __init__(self) -> None:
        self.known: dict[Any, Any] = {}

    def adapted(self, model: nn.Module, layer: Any) -> None:
        key = layer.lora_A.weight.shape, layer.lora_B.weight.shape, layer.lora_A.weight.dtype
        owner, module = self.known.setdefault(key, (model, layer.lora_A))
        if owner is not model:
            layer.lora_A = module


@model_twin("LIFE-MODEL-STATE", says="after merge", source="a list of layers that a copy of the model does not copy")
class MergesTheOriginalOfACopy(LivedModel):
    def apply_lora_to_linear_modules(self, model: Any, peft_config: Any) -> int:
        count = super().apply_lora_to_linear_modules(model, peft_config)
        layers = list(self.layers(model).values())
        model.merge_all = Kept(layers)
        return count

    def merge_adapters(self, model: Any) -> int:
        kept = getattr(model, "merge_all", None)
        if kept is None:
            return super().merge_adapters(model)
        for layer in kept.layers:
            layer.merge()
        return len(kept.layers)


class Kept:
    """Layers that a copy keeps as they are."""

    def __init__(self, layers: list[Any]) -> None:
        self.layers = layers

    def __deepcopy__(self, memo: Any) -> Kept:
        return self


@model_twin("LIFE-MODEL-STATE", says="after merge", source="the layers to merge, looked up at the first merge")
class MergesTheLayersOfTheFirstMerge(LivedModel):
    def merge_adapters(self, model: Any) -> int:
        if not hasattr(model, "mergeable"):
            model.mergeable = tuple(self.layers(model))
        for name in model.mergeable:
            model.get_submodule(name).merge()
        return len(model.mergeable)


@model_twin("LIFE-MODEL-STATE", says="after unmerge", source="a list of merged layers that a second merge replaces")
class UnmergesOnlyTheLastMerge(LivedModel):
    def merge_adapters(self, model: Any) -> int:
        model.last = [name for name, layer in self.layers(model).items() if not layer.merged]
        return super().merge_adapters(model)

    def unmerge_adapters(self, model: Any) -> int:
        names = getattr(model, "last", list(self.layers(model)))
        for name in names:
            model.get_submodule(name).unmerge()
        return len(names)


@model_twin("LIFE-MODEL-BWD", says="after unmerge", source="adapters that a merge freezes and unmerging leaves frozen")
class LeavesUnmergedAdaptersFrozen(LivedModel):
    def merge_adapters(self, model: nn.Module) -> int:
        found = super().merge_adapters(model)
        for layer in self.layers(model).values():
            layer.lora_A.requires_grad_(False)
        return found


@model_twin("LIFE-MODEL-FWD", says="after", source="a flag of the class, which all models share")
class SharesWhatIsMerged(LivedModel):
    def merge_adapters(self, model: nn.Module) -> int:
        found = super().merge_adapters(model)
        self.layer.everywhere = True
        return found

    def unmerge_adapters(self, model: nn.Module) -> int:
        self.layer.everywhere = False
        return super().unmerge_adapters(model)

    class layer(reference.LinearLoRA):  # noqa: N801
        everywhere = False

        def forward(self, x: Any) -> Any:
            return self.base_product(x) if self.everywhere else super().forward(x)


@model_twin("LIFE-MODEL-STATE", says="training is", source="an adapter that is always attached in training mode")
class AdaptsInTrainingMode(LivedModel):
    def adapted(self, model: nn.Module, layer: Any) -> None:
        model.train()


@model_twin("LIFE-MODEL-STATE", says="equality required", source="load_state_dict that loads into the merged weight")
class LoadsStatesBesideAMerge(LivedModel):
    class layer(reference.LinearLoRA):  # noqa: N801
        def _load_from_state_dict(self, state: Any, prefix: str, *arguments: Any) -> None:
            nn.Linear._load_from_state_dict(self, state, prefix, *arguments)


@model_twin("LIFE-MODEL-FWD", says="after", source="the base's products kept for a whole model in evaluation mode")
class KeepsTheHeadOfEvaluation(LivedModel):
    class layer(reference.LinearLoRA):  # noqa: N801
        fused: Any = None

        def train(self, mode: bool = True) -> Any:
            self.fused = None
            return super().train(mode)

        def forward(self, x: Any) -> Any:
            if self.training or torch.is_grad_enabled() or self.merged:
                return super().forward(x)
            if self.fused is None or self.fused.dtype != x.dtype:
                update = (self.lora_B.weight @ self.lora_A.weight * self.scale).to(x.dtype)
                self.fused = (self.weight + update).detach()
            return nn.functional.linear(x, self.fused, self.bias)


@model_twin("LIFE-MODEL-BWD", says="after", source="an adapter that was frozen at some call counts as frozen")
class RemembersThatTheModelWasFrozen(LivedModel):
    class layer(reference.LinearLoRA):  # noqa: N801
        frozen = False

        def forward(self, x: Any) -> Any:
            self.frozen = self.frozen or not self.lora_B.weight.requires_grad
            if self.frozen and not self.merged:
                kept = self.lora_A.weight.detach(), self.lora_B.weight.detach()
                return reference.lora_linear(
                    x, self.weight, self.bias, *kept, self.scale, dropout=self.dropout_p, training=self.training
                )
            return super().forward(x)


@model_twin("LIFE-MODEL-BWD", says="dX of", source="the update of a frozen model computed under no_grad")
class LosesDXOfAFrozenModel(LivedModel):
    class layer(reference.LinearLoRA):  # noqa: N801
        def forward(self, x: Any) -> Any:
            if self.lora_A.weight.requires_grad or self.merged or (self.training and self.dropout_p):
                return super().forward(x)
            with torch.no_grad():
                update = reference.lora_linear(x, None, None, self.lora_A.weight, self.lora_B.weight, self.scale)
            base = self.base_product(x)
            return base + update.to(base.dtype)


class KeptCast(reference.LinearLoRA):
    """A layer that casts its weight in an autocast region, and goes on with the cast outside."""

    cast: Any = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.is_autocast_enabled("cpu") and self.weight.dtype == torch.float32:
            self.cast = self.weight.detach().bfloat16()
        y = super().forward(x)
        if self.cast is None or self.merged or torch.is_autocast_enabled("cpu"):
            return y
        return y + nn.functional.linear(x, self.cast.to(x.dtype) - self.weight.detach()).to(y.dtype)


@model_twin("LIFE-MODEL-FWD", says="worst", source="casts of autocast kept for the calls after the region")
class KeepsTheCastOfTheWeight(LivedModel):
    layer = KeptCast


class IgnoredAutocast(reference.LinearLoRA):
    """A layer that computes in the dtype of its weight, whatever autocast asks for."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.to(self.weight.dtype))


@model_twin("LIFE-MODEL-FWD", says="after autocast has dtype", source="an adapted layer that turns autocast off")
class TurnsAutocastOff(LivedModel):
    layer = IgnoredAutocast
