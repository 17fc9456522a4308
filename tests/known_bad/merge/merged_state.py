"""Known-bad twins of merged state: merging changes what is trained, or a copy of a merged layer loses its state."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.baselines.layer import Layer
from tests.known_bad.merge.registration import twin


@twin("MRG-FROZEN", says="requires grad after merge()", source="a merged weight stored as a new nn.Parameter")
class MergesIntoANewParameter(Layer):
    @torch.no_grad()
    def merge(self) -> None:
        super().merge()
        self.weight = nn.Parameter(self.weight.data)


@twin("MRG-FROZEN", says="does not require grad after unmerge()", source="adapters frozen while merged, and after")
class FreezesTheAdapter(Layer):
    def merge(self) -> None:
        super().merge()
        self.lora_A.weight.requires_grad_(False)


@twin("MRG-COPY", says="y of the copy", source="a flag that is not copied")
class ForgetsThatTheCopyIsMerged(Layer):
    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "merged": False})


@twin(
    "MRG-TO",
    says="the unmerged weight has dtype",
    source="a saved unmerged weight that is not a buffer",
    dtypes=("bfloat16",),
)
class BringsTheOldDtypeBack(Layer):
    @torch.no_grad()
    def unmerge(self) -> None:
        if self.merged:
            self.weight.data = self.base_weight
            self.merged, self.base_weight = False, None


@twin("MRG-TRAIN", says="train(True)", source="microsoft/LoRA: train() unmerges, here without updating the flag")
class UnmergesInTrainingInSilence(Layer):
    def train(self, mode: bool = True) -> Any:
        if mode and getattr(self, "merged", False):
            self.weight.data.copy_(self.base_weight)
        return super().train(mode)
