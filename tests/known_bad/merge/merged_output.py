"""Known-bad twins of merged output: a merged layer has a wrong gradient, or fails on a layout, rank or dtype."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.baselines.layer import Layer
from tests.baselines.linear import Right
from tests.known_bad.merge.registration import twin


@twin("MRG-BWD", says="as if the adapter term were missing", source="backward through the saved unmerged weight")
class GoesBackThroughTheBase(Layer):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if not self.merged:
            return y
        base = nn.functional.linear(x, self.base_weight, self.bias)
        return y.detach() + (base - base.detach())


@twin("MRG-BWD", says="does not require grad", source="a merged layer assumed to be used only for inference")
class RunsMergedWithoutAGraph(Layer):
    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.merged):
            return super().forward(x)


@twin("MRG-LAYOUT", says="merge() raised", source="a weight flattened with view")
class MergesPackedWeightsOnly(Layer):
    @torch.no_grad()
    def merge(self) -> None:
        self.weight.view(-1)
        super().merge()


@twin("MRG-LAYOUT", says="merge() wrote beside the weight", source="a weight written as if it were contiguous")
class MergesTheRowsGapToo(Layer):
    @torch.no_grad()
    def merge(self) -> None:
        super().merge()
        rows, columns = self.weight.shape
        if self.weight.stride() == (columns + 3, 1) and rows > 1:
            self.weight.as_strided((1,), (1,), self.weight.storage_offset() + columns).zero_()


@twin("MRG-LAYOUT", says="as if the bias term were missing", source="a separate path for more than two dimensions")
class ForgetsTheBiasOfManyDimensions(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight) if self.merged and x.dim() > 2 else super().forward(x)


@twin("MRG-RANK", says="the adapter term is", source="alpha/r recomputed for the merge")
class MergesByAlphaOverDim(Layer):
    def __init__(self, right: Right, linear: nn.Linear, dim: int, alpha: float, *args: Any) -> None:
        super().__init__(right, linear, dim, alpha, *args)
        self.plain = alpha / dim

    def delta(self) -> Tensor:
        return self.plain * (self.lora_B.weight @ self.lora_A.weight).to(self.weight.dtype)


@twin("MRG-RANK", says="worst", source="a single block of the rank without a loop")
class MergesSixtyFourRanks(Layer):
    def delta(self) -> Tensor:
        return self.scale * (self.lora_B.weight[:, :64] @ self.lora_A.weight[:64]).to(self.weight.dtype)


@twin("MRG-MIXED", says="dtype", source="a sum promoted to the adapter's dtype", dtypes=("bfloat16", "float16"))
class PromotesTheWeight(Layer):
    @torch.no_grad()
    def merge(self) -> None:
        super().merge()
        self.weight.data = self.weight.data.to(self.lora_A.weight.dtype)
