"""Known-bad twins of the lives of a layer that keeps weights, and uses them after a change."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.baselines.life import LivedLayer
from tests.known_bad.life.registration import twin


class KeepsTheAdaptedWeight(LivedLayer):
    """Keeps W + s·B A of inference, by a key that leaves something out."""

    def key(self) -> Any:
        W, _, A, B, scale = self.operands()
        return tuple((id(t), t._version, t.data_ptr(), t.dtype) for t in (W, A, B)), scale

    def used(self) -> bool:
        return not torch.is_grad_enabled()

    def forward(self, x: Tensor) -> Tensor:
        if "weight" not in self._parameters:  # it is parametrised
            return super().forward(x)
        W, bias, A, B, scale = self.operands()
        if self.merged or not self.used() or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        if self.training and self.dropout_p == 1.0:
            return super().forward(x)
        if self.kept is None or self.kept[0] != self.key():
            with torch.no_grad():
                # the tensors are kept too, so that no other gets their identity
                self.kept = self.key(), (W + (B @ A * scale).to(W.dtype)).detach(), (W, A, B)
        return F.linear(x, self.kept[1], bias)

    def __getstate__(self) -> Any:
        return {**super().__getstate__(), "kept": None}


@twin("LIFE-LAYER-FWD", says="lived", source="a merged weight kept for inference, whatever happens to the adapter")
class KeepsTheAdaptedWeightForGood(KeepsTheAdaptedWeight):
    def key(self) -> Any:
        return self.weight.dtype


@twin("LIFE-LAYER-FWD", says="y after", source="a key of the lora_A alone")
class KeepsTheAdaptedWeightByLoraA(KeepsTheAdaptedWeight):
    def key(self) -> Any:
        A = self.lora_A.weight
        return id(A), A._version, A.data_ptr(), A.dtype, self.scale, id(self.weight), self.weight._version


@twin("LIFE-LAYER-FWD", says="y after", source="a key without the base weight")
class KeepsTheAdaptedWeightWhateverTheBase(KeepsTheAdaptedWeight):
    def key(self) -> Any:
        A, B = self.lora_A.weight, self.lora_B.weight
        return tuple((id(t), t._version, t.data_ptr(), t.dtype) for t in (A, B)), self.scale


@twin("LIFE-LAYER-FWD", says="y after", source="a key without the scale")
class KeepsTheAdaptedWeightAcrossScales(KeepsTheAdaptedWeight):
    def key(self) -> Any:
        return super().key()[0]


@twin("LIFE-LAYER-FWD", says="y after", source="a key of versions, which a new Parameter starts again")
class KeepsTheAdaptedWeightByVersions(KeepsTheAdaptedWeight):
    def key(self) -> Any:
        W, _, A, B, scale = self.operands()
        return W._version, A._version, B._version, scale, W.dtype


@twin("LIFE-LAYER-FWD", says="y after", source="a key of addresses, which in-place changes keep")
class KeepsTheAdaptedWeightByAddress(KeepsTheAdaptedWeight):
    def key(self) -> Any:
        W, _, A, B, scale = self.operands()
        return W.data_ptr(), A.data_ptr(), B.data_ptr(), scale


@twin("LIFE-LAYER-FWD", says="dtype", source="a kept weight without its dtype in the key, and conversion in place")
class KeepsTheAdaptedWeightAcrossDtypes(KeepsTheAdaptedWeight):
    def key(self) -> Any:
        W, _, A, B, scale = self.operands()
        return id(W), W._version, A._version, B._version, id(A), id(B), scale


@twin("LIFE-LAYER-FWD", says="y after", source="a cache that train() empties, and load_state_dict does not")
class KeepsTheAdaptedWeightUntilTrain(KeepsTheAdaptedWeight):
    def key(self) -> Any:
        return self.weight.dtype

    def used(self) -> bool:
        return not self.training and not torch.is_grad_enabled()

    def train(self, mode: bool = True) -> Any:
        self.kept = None
        return super().train(mode)


@twin("LIFE-LAYER-FWD", says="y after", source="a cache that load_state_dict empties, and training does not")
class KeepsTheAdaptedWeightUntilItLoads(KeepsTheAdaptedWeight):
    def key(self) -> Any:
        return self.weight.dtype

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self.kept = None
        super()._load_from_state_dict(*arguments)


@twin("LIFE-LAYER-BWD", says="after", source="a weight that was kept under no_grad, used in training")
class TrainsWithTheWeightOfInference(KeepsTheAdaptedWeight):
    def used(self) -> bool:
        return super().used() or (self.kept is not None and self.kept[0] == self.key())


@twin("LIFE-LAYER-BWD", says="raised RuntimeError", source="a tensor made under inference_mode, saved for backward")
class KeepsACastOfInference(LivedLayer):
    def forward(self, x: Tensor) -> Tensor:
        if self.merged:
            return super().forward(x)
        W, bias, A, B, scale = self.operands()
        key = id(W), W._version, W.data_ptr(), W.dtype
        if self.kept is None or self.kept[0] != key:
            self.kept = key, W.detach().clone(), W
        return self.adapted(x, self.kept[1], bias, A, B, scale)

    def __getstate__(self) -> Any:
        return {**super().__getstate__(), "kept": None}


@twin("LIFE-LAYER-FWD", says="y after", source="W transposed once, for the faster product")
class KeepsTheTransposedWeight(LivedLayer):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.kept = self.weight.detach().T  # a view: in-place changes show, another Parameter does not

    def operands(self) -> Any:
        _, *rest = super().operands()
        return self.kept.T.to(self.weight.dtype), *rest


@twin("LIFE-LAYER-FWD", says="y after", source="Parameters that the constructor has put in a list")
class HoldsTheParametersOfItsStart(LivedLayer):
    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.kept = [self.lora_A.weight, self.lora_B.weight]

    def operands(self) -> Any:
        W, bias, _, _, scale = super().operands()
        return W, bias, *self.kept, scale


@twin("LIFE-LAYER-FWD", says="y after", source="the bias added once to a kept tensor")
class KeepsTheBias(LivedLayer):
    def operands(self) -> Any:
        W, bias, A, B, scale = super().operands()
        key = None if bias is None else (id(bias), bias.data_ptr(), bias.dtype)
        if self.kept is None or self.kept[0] != key:
            self.kept = key, None if bias is None else bias.detach().clone()
        return W, bias if torch.is_grad_enabled() else self.kept[1], A, B, scale


@twin("LIFE-LAYER-FWD", says="y after scale", source="a scale that the first call takes into a closure")
class TakesTheScaleOfTheFirstCall(LivedLayer):
    def operands(self) -> Any:
        *rest, scale = super().operands()
        self.kept = self.kept or scale
        return *rest, self.kept


@twin("LIFE-LAYER-FWD", says="y after scale", source="a graph for each shape of x, with the scale in it")
class KeepsAGraphForEachShape(LivedLayer):
    def operands(self) -> Any:
        *rest, scale = super().operands()
        return *rest, scale

    def forward(self, x: Tensor) -> Tensor:
        graphs = self.kept = self.kept or {}
        scale = graphs.setdefault((x.shape, x.dtype), self.scale)
        now, self.scale = self.scale, scale
        try:
            return super().forward(x)
        finally:
            self.scale = now


@twin("LIFE-LAYER-FWD", says="y after", source="an attribute of the class, which the next layer overwrites")
class SharesTheScaleOfTheClass(LivedLayer):
    latest = 1.0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        type(self).latest = self.scale

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "scale":
            type(self).latest = value

    def operands(self) -> Any:
        *rest, _ = super().operands()
        return *rest, type(self).latest
