"""Known-bad twins of refusals: `patch_linear_module` accepts what it must refuse, or changes it first."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

import reference
from tests.baselines.model import RightModel
from tests.known_bad import breaks
from tests.known_bad.model.spoiled_patch import MODEL


class Accepts(RightModel):
    """A patch that replaces a bad value of the option `key` by `good`; `bad` recognises bad values."""

    key: str
    good: Any = None

    def patch_linear_module(self, orig_linear: Any, *arguments: Any, **options: Any) -> Any:
        if self.key in options and self.bad(options[self.key]):
            options = {**options, self.key: self.good}
        return super().patch_linear_module(orig_linear, *arguments, **options)

    def bad(self, value: Any) -> bool:
        raise NotImplementedError


@breaks("MOD-TWICE", says="patched already returned", **MODEL)
class PatchesAgain(RightModel):
    def patch_linear_module(self, orig_linear: Any, *arguments: Any, **options: Any) -> Any:
        if hasattr(orig_linear, "lora_A"):
            orig_linear.__class__ = nn.Linear
            del orig_linear.lora_A, orig_linear.lora_B
        return super().patch_linear_module(orig_linear, *arguments, **options)


@breaks("MOD-TWICE", says="expected ValueError or TypeError", **MODEL)
class ReturnsAPatchedLayerAsItIs(RightModel):
    def patch_linear_module(self, orig_linear: Any, *arguments: Any, **options: Any) -> Any:
        if hasattr(orig_linear, "lora_A"):
            return orig_linear
        return super().patch_linear_module(orig_linear, *arguments, **options)


@breaks("MOD-NOT-LINEAR", says="returned", **MODEL)
class ReturnsOthersAsTheyAre(RightModel):
    def patch_linear_module(self, orig_linear: Any, *arguments: Any, **options: Any) -> Any:
        if not isinstance(orig_linear, nn.Linear):
            return orig_linear
        return super().patch_linear_module(orig_linear, *arguments, **options)


@breaks("MOD-NOT-LINEAR", says="raised AttributeError", **MODEL)
class FailsByAccidentOnOthers(RightModel):
    def patch_linear_module(self, orig_linear: Any, *arguments: Any, **options: Any) -> Any:
        assert orig_linear.out_features >= 0
        return super().patch_linear_module(orig_linear, *arguments, **options)


@breaks("MOD-DIM", says="dim=0) returned", **MODEL)
class RaisesTheRankToOne(Accepts):
    key, good = "dim", 1

    def bad(self, value: Any) -> bool:
        return type(value) is int and value < 1


@breaks("MOD-DIM-TYPE", says="returned", **MODEL)
class ConvertsTheRank(Accepts):
    key, good = "dim", 8

    def bad(self, value: Any) -> bool:
        return type(value) is not int


@breaks("MOD-ALPHA", says="alpha=nan) returned", **MODEL)
class TakesAnyAlpha(Accepts):
    key, good = "alpha", 32

    def bad(self, value: Any) -> bool:
        return isinstance(value, float) and not math.isfinite(value)


@breaks("MOD-DROPOUT", says="dropout=-0.1) returned", **MODEL)
class TakesAnyDropout(Accepts):
    key, good = "dropout", 0.0

    def bad(self, value: Any) -> bool:
        return not 0 <= value <= 1


@breaks("MOD-DROPOUT", says="dropout=nan) returned", **MODEL)
class ComparesNanTheWrongWay(Accepts):
    key, good = "dropout", 0.0

    def bad(self, value: Any) -> bool:
        return isinstance(value, float) and math.isnan(value)


@breaks("MOD-POSITION", says="dropout_position='middle') returned", **MODEL)
class TakesOtherPositionsForPost(Accepts):
    key, good = "dropout_position", "post"

    def bad(self, value: Any) -> bool:
        return value != "pre"


@breaks("MOD-INIT-UNKNOWN", says="lora_A_init_method='gaussian') returned", **MODEL)
class TakesOtherMethodsForUniform(Accepts):
    key, good = "lora_A_init_method", "uniform"

    def bad(self, value: Any) -> bool:
        return value != "xavier"


@breaks("MOD-DTYPE-UNKNOWN", says="lora_dtype='float17') returned", **MODEL)
class TakesOtherDtypesForNone(Accepts):
    key = "lora_dtype"

    def bad(self, value: Any) -> bool:
        return isinstance(value, str) and not hasattr(torch, value.removeprefix("torch."))


@breaks("MOD-REFUSED-INTACT", says="requires_grad went from", **MODEL)
class FreezesBeforeItChecks(RightModel):
    def patch_linear_module(self, orig_linear: Any, *arguments: Any, **options: Any) -> Any:
        if isinstance(orig_linear, nn.Linear):
            orig_linear.requires_grad_(False)
        return super().patch_linear_module(orig_linear, *arguments, **options)


@breaks("MOD-REFUSED-INTACT", says="the layer became a", **MODEL)
class ChangesTheClassBeforeItChecks(RightModel):
    def patch_linear_module(self, orig_linear: Any, *arguments: Any, **options: Any) -> Any:
        kind = type(orig_linear)
        try:
            return super().patch_linear_module(orig_linear, *arguments, **options)
        except ValueError:
            if kind is nn.Linear:
                orig_linear.__class__ = reference.LinearLoRA
            raise
