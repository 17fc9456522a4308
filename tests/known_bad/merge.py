"""Known-bad twins of merging: twice, unscaled, transposed, into the bias, or not undone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.baselines.layer import Layer
from tests.baselines.linear import Right
from tests.known_bad import record


def twin(clause: str, **options: Any) -> Any:
    """Register a layer class as a known-bad twin."""

    def register(kind: type[Layer]) -> type[Layer]:
        record(kind.__name__, Right(kind), clause, groups=("merge",), **options)
        return kind

    return register


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


@twin("MRG-UNMERGE", says="the unmerged weight", source="huggingface/peft #2918 (CB1): a sign")
class UnmergesWithTheWrongSign(Layer):
    @torch.no_grad()
    def unmerge(self) -> None:
        if self.merged:
            self.weight += self.delta()
            self.merged, self.base_weight = False, None


@twin("MRG-UNTOUCHED", says="changed the weight", source="unmerging without asking")
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


@twin("MRG-MODE", says="worst", source="dropout on the merged output")
class DropsTheMergedOutput(Layer):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return self.dropped(y) if self.merged else y


@twin("MRG-BWD", says="as if the adapter term were missing", source="backward through the weight kept for unmerging")
class GoesBackThroughTheBase(Layer):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if not self.merged:
            return y
        base = nn.functional.linear(x, self.base_weight, self.bias)
        return y.detach() + (base - base.detach())


@twin("MRG-BWD", says="does not require grad", source="a merged layer taken for inference only")
class RunsMergedWithoutAGraph(Layer):
    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.merged):
            return super().forward(x)


@twin("MRG-LAYOUT", says="merge() raised", source="a weight flattened by view")
class MergesPackedWeightsOnly(Layer):
    @torch.no_grad()
    def merge(self) -> None:
        self.weight.view(-1)
        super().merge()


@twin("MRG-LAYOUT", says="merge() wrote beside the weight", source="a weight written as if its rows were packed")
class MergesTheRowsGapToo(Layer):
    @torch.no_grad()
    def merge(self) -> None:
        super().merge()
        rows, columns = self.weight.shape
        if self.weight.stride() == (columns + 3, 1) and rows > 1:
            self.weight.as_strided((1,), (1,), self.weight.storage_offset() + columns).zero_()


@twin("MRG-LAYOUT", says="as if the bias term were missing", source="a path of its own for more than two dimensions")
class ForgetsTheBiasOfManyDimensions(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight) if self.merged and x.dim() > 2 else super().forward(x)


@twin("MRG-RANK", says="the adapter term is", source="alpha/r stated again where the update is merged")
class MergesByAlphaOverDim(Layer):
    def __init__(self, right: Right, linear: nn.Linear, dim: int, alpha: float, *args: Any) -> None:
        super().__init__(right, linear, dim, alpha, *args)
        self.plain = alpha / dim

    def delta(self) -> Tensor:
        return self.plain * (self.lora_B.weight @ self.lora_A.weight).to(self.weight.dtype)


@twin("MRG-RANK", says="worst", source="a block of the rank that is not looped over")
class MergesSixtyFourRanks(Layer):
    def delta(self) -> Tensor:
        return self.scale * (self.lora_B.weight[:, :64] @ self.lora_A.weight[:64]).to(self.weight.dtype)


@twin("MRG-MIXED", says="dtype", source="a sum promoted to the adapter's dtype", dtypes=("bfloat16", "float16"))
class PromotesTheWeight(Layer):
    @torch.no_grad()
    def merge(self) -> None:
        super().merge()
        self.weight.data = self.weight.data.to(self.lora_A.weight.dtype)


@twin("MRG-FROZEN", says="requires grad after merge()", source="a merged weight that is a new nn.Parameter")
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
    source="the weight kept for unmerging is no buffer",
    dtypes=("bfloat16",),
)
class BringsTheOldDtypeBack(Layer):
    @torch.no_grad()
    def unmerge(self) -> None:
        if self.merged:
            self.weight.data = self.base_weight
            self.merged, self.base_weight = False, None


@twin("MRG-TRAIN", says="train(True)", source="microsoft/LoRA: train() unmerges, here without saying so")
class UnmergesInTrainingInSilence(Layer):
    def train(self, mode: bool = True) -> Any:
        if mode and getattr(self, "merged", False):
            self.weight.data.copy_(self.base_weight)
        return super().train(mode)
