"""Known-bad twins of merged weight: merging adds a wrong update, adds it twice, or does not undo it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.baselines.layer import Layer
from tests.known_bad.merge.registration import twin


@twin("MRG-FWD", says="worst", source="unslothai/unsloth #57 (MO2)")
class AddsTheAdapterToMerged(Layer):
    def forward(self, x: Tensor) -> Tensor:
        merged, self.merged = self.merged, False
        y = super().forward(x)
        self.merged = merged
        return y


@twin("MRG-WEIGHT", says="the adapter term is", source="hao-ai-lab/FastVideo #870 (ME3)")
class MergesUnscaled(Layer):
    def delta(self) -> Tensor:
        return super().delta() / self.scale


@twin("MRG-WEIGHT", says="merge() changed bias", source="huggingface/peft #2489 (ME4)")
class MergesIntoTheBias(Layer):
    @torch.no_grad()
    def merge(self) -> None:
        super().merge()
        if self.bias is not None:
            self.bias += 1


@twin("MRG-WEIGHT", says="worst", source="microsoft/LoRA a23efe2 (ML1)")
class MergesTheTransposeWhereSquare(Layer):
    def delta(self) -> Tensor:
        change = super().delta()
        return change.T if change.shape[0] == change.shape[1] else 0 * change


@twin("MRG-TWICE", says="two merges", source="huggingface/peft #1355 (ME1)")
class MergesTwice(Layer):
    @torch.no_grad()
    def merge(self) -> None:
        if self.base_weight is None:
            self.base_weight = self.weight.detach().clone()
        self.weight += self.delta()
        self.merged = True


@twin("MRG-UNMERGE", says="the unmerged weight", source="huggingface/peft #2918 (CB1): a wrong sign")
class UnmergesWithTheWrongSign(Layer):
    @torch.no_grad()
    def unmerge(self) -> None:
        if self.merged:
            self.weight += self.delta()
            self.merged, self.base_weight = False, None


@twin("MRG-REFILL", says="after new values of all operands", source="an update that is computed once")
class KeepsTheUpdate(Layer):
    def delta(self) -> Tensor:
        if not hasattr(self, "change"):
            self.change = super().delta().detach()
        return self.change


@twin("MRG-REFILL", says="after new values of lora_B", phrase="caches the update by lora_A alone", source="a frozen A")
class KeepsTheUpdateByA(Layer):
    def delta(self) -> Tensor:
        version = self.lora_A.weight._version
        if getattr(self, "change", (None,))[0] != version:
            self.change = version, super().delta().detach()
        return self.change[1]


@twin("MRG-REFILL", says="after new values of", source="a copy of the weight from before the first merge")
class KeepsTheFirstWeight(Layer):
    @torch.no_grad()
    def merge(self) -> None:
        if not self.merged:
            self.first = getattr(self, "first", self.weight.detach().clone())
            self.base_weight = self.first
            self.weight.copy_(self.first + self.delta())
            self.merged = True


@twin("MRG-WEIGHT", says="worst", source="a product in the other order, which has the right shape where W is square")
class MergesTheTransposeOfASquare(Layer):
    def delta(self) -> Tensor:
        change = super().delta()
        return change.T if change.shape[0] == change.shape[1] else change


@twin("MRG-UNTOUCHED", says="changed the weight", source="unmerging without checking the flag")
class SubtractsWhatWasNotAdded(Layer):
    @torch.no_grad()
    def unmerge(self) -> None:
        self.weight -= self.delta()
        self.merged, self.base_weight = False, None


@twin("MRG-FLAG", says="merged is False after merge()", dtypes=("float32",), source="a flag set on the class")
class NeverSaysItIsMerged(Layer):
    @property
    def merged(self) -> bool:
        return False

    @merged.setter
    def merged(self, value: bool) -> None:
        pass


@twin("MRG-STATE", says="state_dict()", source="a merged weight saved as the base")
class SavesTheMergedWeight(Layer):
    def state_dict(self, *args: Any, **options: Any) -> Any:
        return nn.Module.state_dict(self, *args, **options)


@twin("MRG-MODE", says="worst", source="dropout applied to the merged output")
class DropsTheMergedOutput(Layer):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return self.dropped(y) if self.merged else y
