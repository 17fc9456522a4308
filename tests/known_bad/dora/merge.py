"""Known-bad twins of merge: merging a DoRA layer loses the magnitude, or unmerging does not restore the weight."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.baselines.layer import Layer
from tests.known_bad.dora.registration import twin

ALL = ("float64", "float32", "bfloat16", "float16")


@twin("DORA-MERGE", says="the merged weight", dtypes=ALL, source="unslothai/unsloth-zoo #828: a plain merge")
class MergesWithoutTheMagnitude(Layer):
    def dora_weight(self) -> Tensor:
        return self.weight + self.delta()


@twin("DORA-MERGE", says="the merged weight")
class MultipliesByTheNormWhenMerging(Layer):
    def dora_weight(self) -> Tensor:
        norm = self.row_norm(self.weight.float() + self.delta().float())
        return super().dora_weight() * (norm * norm)[:, None]


@twin("DORA-MERGE", says="y of the merged layer")
class KeepsTheAdapterWhenMerged(Layer):
    def forward(self, x: Tensor) -> Tensor:
        merged, self.merged = self.merged, False
        y = super().forward(x)
        self.merged = merged
        return y


@twin("DORA-UNMERGE", says="the unmerged weight", source="the update subtracted without undoing the row factor")
class UnmergesByTheUpdateAlone(Layer):
    @torch.no_grad()
    def unmerge(self) -> None:
        if self.merged:
            self.weight -= self.delta()
            self.merged, self.base_weight = False, None


@twin("DORA-UNMERGE", says="the unmerged weight")
class DoesNotUnmerge(Layer):
    def unmerge(self) -> None:
        self.merged, self.base_weight = False, None


@twin(
    "DORA-MERGE", says="the merged weight", phrase="merges with the factor of an earlier merge", source="m′ kept by A"
)
class MergesByAKeptFactor(Layer):
    def dora_weight(self) -> Tensor:
        version = self.lora_A.weight._version
        if getattr(self, "kept", (None,))[0] != version:
            self.kept = version, self.factor().detach()
        factor, self.factor = self.factor, lambda: self.kept[1]  # type: ignore[method-assign]
        weight = super().dora_weight()
        self.factor = factor  # type: ignore[method-assign]
        return weight
