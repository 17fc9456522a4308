"""Known-bad twins of the lives of a layer that is copied, loaded, converted or parametrised."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from tests.baselines.life import LivedLayer
from tests.known_bad.life.registration import twin


@twin("LIFE-LAYER-FWD", says="y after deepcopy", source="a copy with the constructor's scale")
class CopiesTheScaleOfItsStart(LivedLayer):
    def __deepcopy__(self, memo: Any) -> Any:
        made = _deep_copied(self, memo)
        made.scale = self.alpha / self.dim
        return made


def _deep_copied(layer: Any, memo: Any) -> Any:
    made = type(layer).__new__(type(layer))
    nn.Module.__init__(made)
    memo[id(layer)] = made
    made.__setstate__({name: copy.deepcopy(value, memo) for name, value in layer.__dict__.items()})
    return made


@twin("LIFE-LAYER-FWD", says="y after deepcopy", source="a copy that shares the adapter once it has been in eval")
class CopiesShareTheAdapterInEval(LivedLayer):
    def __deepcopy__(self, memo: Any) -> Any:
        made = _deep_copied(self, memo)
        if not self.training:
            made.lora_A = self.lora_A
        return made


@twin("LIFE-LAYER-STATE", says="training is", source="a copy made by the constructor, in training mode")
class CopiesAreInTraining(LivedLayer):
    def __deepcopy__(self, memo: Any) -> Any:
        return _deep_copied(self, memo).train()


@twin("LIFE-LAYER-STATE", says="grad", source="a copy whose bias is frozen again")
class CopiesFreezeTheBias(LivedLayer):
    def __deepcopy__(self, memo: Any) -> Any:
        made = _deep_copied(self, memo)
        if made.bias is not None:
            made.bias.requires_grad_(False)
        return made


@twin("LIFE-LAYER-FWD", says="y after deepcopy", source="a copy without its hooks")
class CopiesLoseTheirHooks(LivedLayer):
    def __deepcopy__(self, memo: Any) -> Any:
        made = _deep_copied(self, memo)
        made._forward_hooks.clear()
        return made


@twin("LIFE-LAYER-FWD", says="after", source="copying unmerges the layer, but not its flag")
class CopyingUnmergesTheLayer(LivedLayer):
    def __deepcopy__(self, memo: Any) -> Any:
        made = _deep_copied(self, memo)
        if self.merged:
            self.weight.data.copy_(self.unmerged_weight)
        return made


@twin("LIFE-LAYER-FWD", says="after", source="a flag that is no buffer is not pickled")
class ForgetsInAPickleThatItIsMerged(LivedLayer):
    def __reduce_ex__(self, protocol: Any) -> Any:
        return _unpickled, (type(self), {**self.__dict__})

    def __deepcopy__(self, memo: Any) -> Any:
        return _deep_copied(self, memo)


def _unpickled(kind: type, state: dict[str, Any]) -> Any:
    made = kind.__new__(kind)
    nn.Module.__init__(made)
    made.__setstate__({**state, "_buffers": {"unmerged_weight": None}})
    return made


@twin("LIFE-LAYER-FWD", says="y after", source="__getstate__ that empties the layer itself")
class EmptiesItselfWhenItIsCopied(LivedLayer):
    def __getstate__(self) -> Any:
        state = self.__dict__
        state["dropout_p"] = 0.0 if self.scale != self.alpha / self.dim else self.dropout_p
        state["scale"] = self.alpha / self.dim
        return state.copy()


@twin("LIFE-LAYER-STATE", says="the state_dict has the keys", source="a cache that enters the state_dict")
class SavesItsCache(LivedLayer):
    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled() and "cache" not in self._buffers:
            self.register_buffer("cache", torch.zeros(1))
        return super().forward(x)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)


@twin("LIFE-LAYER-FWD", says="y after", source="a scale in a buffer that is not saved, and the meta device")
class LosesTheScaleOnMeta(LivedLayer):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.register_buffer("factor", torch.tensor(1.0), persistent=False)

    def operands(self) -> Any:
        *rest, scale = super().operands()
        return *rest, scale * float(self.factor)


@twin(
    "LIFE-LAYER-STATE",
    says="weight requires grad",
    source="loading with assign=True thaws the base",
    phrase="thaws the base when it is assigned",
)
class ThawsTheBaseWhenAssigned(LivedLayer):
    def _load_from_state_dict(self, state: Any, prefix: str, local: Any, *arguments: Any) -> None:
        super()._load_from_state_dict(state, prefix, local, *arguments)
        if local.get("assign_to_params_buffers"):
            self.weight.requires_grad_(True)


@twin("LIFE-LAYER-STATE", says="another Parameter", source="pytorch/torchtune: a Parameter initialised by another one")
class InitialisesANewParameter(LivedLayer):
    def init_lora_weights(self, init_method: str) -> None:
        super().init_lora_weights(init_method)
        self.lora_A.weight = nn.Parameter(self.lora_A.weight.data)


@twin("LIFE-LAYER-FWD", says="y after init", source="init_lora_weights computes the scale again")
class InitialisesTheScale(LivedLayer):
    def init_lora_weights(self, init_method: str) -> None:
        super().init_lora_weights(init_method)
        self.scale = self.alpha / self.dim


@twin("LIFE-LAYER-STATE", says="another Parameter", source="conversion by new Parameters, which no optimiser holds")
class ConvertsIntoNewParameters(LivedLayer):
    def _apply(self, function: Any, recurse: bool = True) -> Any:
        found = super()._apply(function, recurse)
        self.lora_A.weight = nn.Parameter(self.lora_A.weight.data, self.lora_A.weight.requires_grad)
        return found


@twin("LIFE-LAYER-FWD", says="y after", source="a weight looked up before it was parametrised")
class KeepsTheWeightOfItsFirstCall(LivedLayer):
    def operands(self) -> Any:
        W, bias, A, B, scale = super().operands()
        held = self._parameters.get("weight")
        if held is not None:
            self.kept = [held]  # in a list, so that it is not registered again
        return self.kept[0] if self.kept else W, bias, A, B, scale


@twin("LIFE-LAYER-FWD", says="raised KeyError", source="the weight looked up in _parameters", dtypes=("float32",))
class LooksTheWeightUpInItsParameters(LivedLayer):
    def operands(self) -> Any:
        _, *rest = super().operands()
        return self._parameters["weight"], *rest
