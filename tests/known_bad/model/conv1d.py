"""Known-bad twins of Conv1D: it is skipped in silence, or its weight [in, out] is taken for [out, in]."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from tests.baselines.model import RightMatcher
from tests.known_bad import breaks
from tests.known_bad.model.registration import breaks_by_matcher
from tests.known_bad.model.spoiled_patch import MODEL, AfterPatching, reclassed, update


@breaks_by_matcher("MOD-CONV1D", says="it got no adapter, and nothing named it", source="isinstance(m, nn.Linear)")
class SkipsConv1DInSilence(RightMatcher):
    def is_linear(self, m: nn.Module) -> bool:
        return isinstance(m, nn.Linear)


def _is_square(layer: Any) -> bool:
    return bool(layer.fan_in_fan_out and layer.in_features == layer.out_features)


def _untransposed(layer: Any, x: Tensor) -> Tensor:
    if layer.merged or not _is_square(layer):
        return type(layer).__mro__[1].forward(layer, x)  # type: ignore[no-any-return]
    return linear(x, layer.weight, layer.bias) + update(layer, x)


@breaks("MOD-CONV1D-STEP", says="worst    y", source="a weight transposed only where its shape demands it", **MODEL)
class TakesASquareConv1DForALinear(AfterPatching):
    def spoil(self, layer: Any, options: Any) -> None:
        reclassed(layer, forward=_untransposed)


@torch.no_grad()
def _merged_untransposed(layer: Any) -> None:
    type(layer).__mro__[1].merge(layer)
    if _is_square(layer):
        change = layer.scale * layer.lora_B.weight @ layer.lora_A.weight
        layer.weight.copy_(layer.unmerged_weight + change)


@breaks("MOD-CONV1D-STEP", says="worst    y", source="a merge that forgets fan_in_fan_out", **MODEL)
class MergesASquareConv1DUntransposed(AfterPatching):
    def spoil(self, layer: Any, options: Any) -> None:
        reclassed(layer, merge=_merged_untransposed)


@torch.no_grad()
def _unmerged_along_the_inputs(layer: Any) -> None:
    merged, held = layer.merged, layer.weight.detach().clone()
    type(layer).__mro__[1].unmerge(layer)
    if merged and layer.lora_magnitude is not None and _is_square(layer):
        change = layer.scale * layer.lora_B.weight @ layer.lora_A.weight
        factor = layer.lora_magnitude / (layer.weight.t() + change).norm(dim=1)
        layer.weight.copy_(held / factor[:, None] - change.t())


@breaks("MOD-CONV1D-UNMERGE", says="the unmerged weight", source="huggingface/peft #3531", **MODEL)
class UnmergesDoraAlongTheInputs(AfterPatching):
    def spoil(self, layer: Any, options: Any) -> None:
        reclassed(layer, unmerge=_unmerged_along_the_inputs)


@torch.no_grad()
def _unmerged_twice(layer: Any) -> None:
    merged = layer.merged
    type(layer).__mro__[1].unmerge(layer)
    if merged and layer.fan_in_fan_out and layer.lora_magnitude is None:
        layer.weight -= (layer.scale * layer.lora_B.weight @ layer.lora_A.weight).t()


@breaks(
    "MOD-CONV1D-UNMERGE", says="the unmerged weight", source="a weight restored, and the update subtracted", **MODEL
)
class UnmergesAConv1DTwice(AfterPatching):
    def spoil(self, layer: Any, options: Any) -> None:
        reclassed(layer, unmerge=_unmerged_twice)
