"""Known-bad twins of dropout masks: masks repeat, or depend on grad mode or on the required gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.baselines.linear import Right
from tests.known_bad import breaks


@breaks(
    "LIN-DROP-INDEPENDENT",
    "LAY-DROP-INDEPENDENT",
    says="in itself",
    source="a random offset computed from the row within its block",
)
class RepeatsTheMaskEvery32Rows(Right):
    def mask(self, like: Tensor, p: float) -> Tensor:
        first = super().mask(like[:32], p)
        return first.repeat(-(-len(like) // 32), 1)[: len(like)]


@breaks("LIN-DROP-INDEPENDENT", "LAY-DROP-INDEPENDENT", says="in itself", source="one random number for two neighbours")
class DropsInPairs(Right):
    def mask(self, like: Tensor, p: float) -> Tensor:
        half = super().mask(like[:, : (like.shape[1] + 1) // 2], p)
        return half.repeat_interleave(2, 1)[:, : like.shape[1]]


@breaks(
    "LIN-DROP-INDEPENDENT",
    "LAY-DROP-INDEPENDENT",
    says="in the next call's",
    source="an offset that advances by rows, not by elements",
)
class MovesTheMaskByARow(Right):
    def reset(self) -> None:
        self.last: dict[Any, Tensor] = {}

    def mask(self, like: Tensor, p: float) -> Tensor:
        if not hasattr(self, "last"):
            self.reset()
        found, key = super().mask(like, p), (like.shape, like.dtype, p)
        if key in self.last and torch._C._current_graph_task_id() == -1:
            found = torch.cat([self.last[key][1:], found[:1]])
        self.last[key] = found
        return found


@breaks(
    "LIN-DROP-CKPT",
    "LAY-DROP-CKPT",
    says="worst    y of the probe",
    source="dropout applied only when a graph is recorded",
)
class DropsWithAGraphOnly(Right):
    def lora_linear(self, *args: Any, dropout: float = 0.0, **options: Any) -> Tensor:
        acts = torch.is_grad_enabled() or not 0 <= dropout < 1
        return super().lora_linear(*args, dropout=dropout if acts else 0.0, **options)


@breaks("LIN-DROP-NEEDS", "LAY-DROP-NEEDS", says="worst    d", source="a mask saved only for the gradient of x")
class ForgetsTheMaskWithoutX(Right):
    def lora_linear(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        y = super().lora_linear(x, *args, **options)
        if options.get("dropout") and options.get("training") and not x.requires_grad and y.requires_grad:
            plain = super().lora_linear(x, *args, **{**options, "dropout": 0.0})
            return y.detach() + plain - plain.detach()
        return y
