"""Known-bad twins of the lives of a layer that is merged, and something else besides."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.baselines.life import LivedLayer
from tests.known_bad.life.kept_weights import KeepsTheAdaptedWeight
from tests.known_bad.life.registration import twin


@twin("LIFE-LAYER-FWD", says="lived", source="microsoft/LoRA: eval() merges; what changes afterwards is not seen")
class MergesInEval(KeepsTheAdaptedWeight):
    def key(self) -> Any:
        return self.weight.dtype

    def used(self) -> bool:
        return not self.training

    def train(self, mode: bool = True) -> Any:
        if mode:
            self.kept = None
        return super().train(mode)


@twin("MRG-TRAIN", says="y after", source="microsoft/LoRA: train() unmerges, here without updating the flag")
class UnmergesInTrain(LivedLayer):
    def train(self, mode: bool = True) -> Any:
        if mode and not self.training and self.merged:
            self.weight.data.copy_(self.unmerged_weight)
        return super().train(mode)


@twin("LIFE-LAYER-STATE", says="the weight after unmerge", source="unmerge() subtracts the update in 16 bits")
class UnmergesInTheDtypeOfTheWeight(LivedLayer):
    @torch.no_grad()
    def unmerge(self) -> None:
        if self.merged:
            narrow = self.delta().bfloat16() if self.weight.dtype == torch.float32 else self.delta()
            self.weight -= narrow
            self.unmerged_weight = None


@twin("LIFE-LAYER-FWD", says="after", source="load_state_dict into a merged layer leaves the flag")
class StaysMergedWhenItLoads(LivedLayer):
    def _load_from_state_dict(self, *arguments: Any) -> None:
        kept, self.unmerged_weight = self.unmerged_weight, None
        super()._load_from_state_dict(*arguments)
        self.unmerged_weight = kept


@twin(
    "LIFE-LAYER-STATE", says="after", source="huggingface/peft: the state_dict of a merged layer has the merged weight"
)
class SavesTheMergedWeight(LivedLayer):
    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        nn.Linear._save_to_state_dict(self, destination, prefix, keep_vars)


@twin("LIFE-LAYER-STATE", says="after", source="a saved weight that is no buffer, so that .to() leaves it behind")
class LeavesTheUnmergedWeightBehind(LivedLayer):
    def _apply(self, function: Any, recurse: bool = True) -> Any:
        kept, self.unmerged_weight = self.unmerged_weight, None
        found = super()._apply(function, recurse)
        if kept is not None:
            self.unmerged_weight = kept.to(torch.bfloat16) if self.weight.dtype == torch.float64 else kept
        return found


@twin("LIFE-LAYER-STATE", says="after", source="a merged weight stored as a new nn.Parameter")
class MergesIntoANewParameterAfterUse(LivedLayer):
    @torch.no_grad()
    def merge(self) -> None:
        before = self.weight
        super().merge()
        if self.kept is not None:
            self.weight = nn.Parameter(before.data, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)

    def train(self, mode: bool = True) -> Any:
        self.kept = None if mode else True
        return super().train(mode)


@twin("LIFE-LAYER-BWD", says="after", source="adapters frozen while merged, and not thawed if unmerged twice")
class FreezesTheAdapterWhenUnmergedTwice(LivedLayer):
    def unmerge(self) -> None:
        if not self.merged and self.kept:
            self.lora_A.weight.requires_grad_(False)
        self.kept = self.merged
        super().unmerge()


@twin("LIFE-LAYER-FWD", says="y after", source="merge() that does nothing in training, but sets the flag")
class OnlySaysThatItMergesInTraining(LivedLayer):
    @torch.no_grad()
    def merge(self) -> None:
        if self.training and not self.merged:
            self.unmerged_weight = self.weight.detach().clone()
        super().merge()


@twin("MRG-FROZEN", says="weight is another Parameter", source="a merged weight stored as a new nn.Parameter")
class MergesIntoANewParameter(LivedLayer):
    @torch.no_grad()
    def merge(self) -> None:
        super().merge()
        self.weight = nn.Parameter(self.weight.data)


@twin("MRG-FROZEN", says="lora_A does not require grad", source="adapters frozen while merged, and after")
class FreezesTheAdapter(LivedLayer):
    def merge(self) -> None:
        super().merge()
        self.lora_A.weight.requires_grad_(False)


@twin("MRG-COPY", says="y after", source="a flag that is not copied")
class ForgetsThatTheCopyIsMerged(LivedLayer):
    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.unmerged_weight = None


@twin("MRG-TO", says="has dtype", source="a saved unmerged weight that is not a buffer")
class BringsTheOldDtypeBack(LivedLayer):
    saved: Any = None

    @torch.no_grad()
    def merge(self) -> None:
        self.saved = self.saved if self.merged else [self.weight.detach().clone()]
        super().merge()

    @torch.no_grad()
    def unmerge(self) -> None:
        if self.merged:
            self.weight.data, self.unmerged_weight = self.saved[0], None
