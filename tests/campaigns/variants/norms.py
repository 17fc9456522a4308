"""Right but different gradient norms: in the gradients' dtype, and without an argument."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from tests.baselines.gradnorm import Right


class Narrow(Right):
    """A norm that is rounded to the dtype that all gradients promote to."""

    CONFORMANCE: ClassVar = {"features": {"norm_dtype": "gradients"}}

    def returned(self, norm: Tensor, gradients: list[Tensor]) -> Any:
        dtypes = {g.dtype for g in gradients} or {torch.float32}
        return norm.to(next(iter(dtypes)) if len(dtypes) == 1 else torch.float32)


class Silent(Right):
    """A function without error_if_nonfinite."""

    def clip_grad_norm_(self, parameters: Any, max_norm: float) -> Any:
        return super().clip_grad_norm_(parameters, max_norm)


VARIANTS: dict[str, Any] = {
    "right": Right(),
    "in the gradients' dtype": Narrow(),
    "without error_if_nonfinite": Silent(),
}
