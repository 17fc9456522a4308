"""accelerate's `Accelerator.clip_grad_norm_`: `loraspec run conformance.targets.accelerate_gradnorm`."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

from torch import Tensor

from conformance.targets.wrapped_layer import library, version_of

WRITTEN_FOR = ("accelerate", "1.15.0", "pip install 'loraspec[peers]'")
with library(*WRITTEN_FOR):
    from accelerate import Accelerator

    Accelerator.clip_grad_norm_  # noqa: B018  (an AttributeError names both versions)

CONFORMANCE = {
    "name": "accelerate clip_grad_norm_",
    "version": version_of("accelerate"),
    "features": {"norm_dtype": "gradients"},
}


@cache
def _accelerator() -> Any:
    return Accelerator()


def clip_grad_norm_(parameters: Iterable[Tensor], max_norm: float) -> Any:
    """The norm before clipping, of one process without mixed precision.

    Source: accelerate 1.15.0, `accelerate/accelerator.py`.
    """
    return _accelerator().clip_grad_norm_(parameters, max_norm)
