"""Known-bad twins of arguments: the functions accept wrong shapes and probabilities, or ignore the dtype."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.baselines.linear import Alone as RightAlone
from tests.baselines.linear import Right
from tests.known_bad import breaks, record


@breaks(
    "LIN-SHAPES",
    says="expected an error",
    dtypes=("float32",),
    source="a kernel that does not check shapes",
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
    dtypes=("float32",),
    source="a probability clamped without a warning",
)
class ClampsTheProbability(Right):
    def lora_linear(self, *args: Any, **options: Any) -> Tensor:
        p = options.get("dropout", 0.0)
        return super().lora_linear(*args, **{**options, "dropout": min(1.0, max(0.0, 0.0 if math.isnan(p) else p))})


def breaks_alone(says: str) -> Callable[[type[RightAlone]], type[RightAlone]]:
    """Return a decorator that registers a defective `LoRATritonFunction` as a twin of LIN-DTYPE."""

    def register(kind: type[RightAlone]) -> type[RightAlone]:
        right = type(kind.__name__, (Right,), {"LoRATritonFunction": property(kind)})
        record(kind.__name__, right(), "LIN-DTYPE", says=says)
        return kind

    return register


@breaks_alone("y has dtype")
class ReturnsTheDtypeOfX(RightAlone):
    def apply(self, x: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
        return super().apply(x, lora_A, lora_B, scale, x.dtype)


@breaks_alone("the output does not require grad")
class CastsOutsideTheGraph(RightAlone):
    def apply(self, x: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
        y = super().apply(x, lora_A, lora_B, scale, x.dtype)
        return y if dtype == x.dtype else y.detach().to(dtype)
