"""Known-bad twins of relations: the output violates a relation between calls."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from tests.baselines.linear import Right, UpdateOperands
from tests.known_bad import breaks


@breaks("LIN-REL-PERMUTE", "LAY-REL-PERMUTE", says="worst", source="a row index taken from the program id")
class WeighsRowsByPosition(Right):
    def update(self, o: UpdateOperands) -> Tensor:
        y = super().update(o)
        return y * (1 + torch.arange(len(y)).to(y.dtype) / 16)[:, None]


@breaks("LIN-REL-LINEAR", "LAY-REL-LINEAR", says="worst", source="a leftover activation")
class ClampsTheUpdate(Right):
    def update(self, o: UpdateOperands) -> Tensor:
        return super().update(o).clamp(-0.5, 0.5)


@breaks("LIN-REL-SCALE", "LAY-REL-SCALE", says="worst", source="a clipped scale")
class ClipsTheScale(Right):
    def update(self, o: UpdateOperands) -> Tensor:
        return super().update(replace(o, scale=min(o.scale, 2.0)))


@breaks("LIN-REL-STACK", "LAY-REL-STACK", says="worst", source="a result divided by the rank")
class NormalisesByRank(Right):
    def update(self, o: UpdateOperands) -> Tensor:
        return super().update(o) / o.lora_A.shape[0]
