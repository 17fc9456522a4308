"""Known-bad twins of what only the functions promise: refusing shapes and probabilities that cannot be."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from tests.known_bad import breaks
from tests.right import Right


@breaks(
    "LIN-SHAPES",
    says="expected an error",
    groups=("linear",),
    dtypes=("float32",),
    source="a kernel that trusts its shapes",
)
class TrimsToTheCommonSize(Right):
    def lora_linear(
        self, x: Tensor, weight: Any, bias: Any, lora_A: Tensor, lora_B: Tensor, *args: Any, **options: Any
    ) -> Tensor:
        width, rank = min(x.shape[-1], lora_A.shape[1]), min(lora_A.shape[0], lora_B.shape[1])
        weight = None if weight is None else weight[:, :width]
        return super().lora_linear(
            x[..., :width], weight, bias, lora_A[:rank, :width], lora_B[:, :rank], *args, **options
        )


@breaks(
    "LIN-DROP-RANGE",
    says="expected a ValueError",
    groups=("linear",),
    dtypes=("float32",),
    source="a probability clamped in silence",
)
class ClampsTheProbability(Right):
    def lora_linear(self, *args: Any, **options: Any) -> Tensor:
        p = options.get("dropout", 0.0)
        return super().lora_linear(*args, **{**options, "dropout": min(1.0, max(0.0, 0.0 if math.isnan(p) else p))})
