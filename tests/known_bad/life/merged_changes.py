"""Known-bad twins of changes while an adapter is merged."""

from __future__ import annotations

import torch

from tests.baselines.life import LivedLayer
from tests.known_bad.life.registration import twin


@twin("LIFE-LAYER-MERGED", says="the weight after", source="huggingface/peft: unmerge() subtracts the present update")
class SubtractsThePresentUpdate(LivedLayer):
    @torch.no_grad()
    def unmerge(self) -> None:
        if self.merged:
            self.weight -= self.delta()
            self.unmerged_weight = None


@twin("LIFE-LAYER-MERGED", says="y after", source="a merged layer that also adds what has changed since, twice")
class AddsTheChangeTwice(LivedLayer):
    def merge(self) -> None:
        self.kept = None if self.merged else self.delta().detach()
        super().merge()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.merged or self.kept is None:
            return super().forward(x)
        change = 2 * (self.delta() - self.kept.to(self.weight.dtype))
        return torch.nn.functional.linear(x, self.weight + change, self.bias)


@twin("LIFE-LAYER-MERGED", says="after init", source="huggingface/peft #3498: an adapter deleted while merged")
class ForgetsTheMergeOfAnAdapterThatIsDrawnAgain(LivedLayer):
    def init_lora_weights(self, init_method: str) -> None:
        self.unmerged_weight = None
        super().init_lora_weights(init_method)
