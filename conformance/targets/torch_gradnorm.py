"""torch's own `clip_grad_norm_` and `get_total_norm`: `loraspec run conformance.targets.torch_gradnorm`."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor
from torch.nn.utils import clip_grad_norm_, get_total_norm

from conformance.targets.wrapped_layer import version_of

CONFORMANCE = {
    "name": "torch clip_grad_norm_",
    "version": version_of("torch"),
    "features": {"norm_dtype": "gradients"},
}
__all__ = ["CONFORMANCE", "clip_grad_norm_", "grad_norm"]


def grad_norm(parameters: Iterable[Tensor]) -> Tensor:
    """torch's norm of the gradients that there are.

    Source: torch 2.13.0, `torch/nn/utils/clip_grad.py`.
    """
    return get_total_norm(p.grad for p in parameters if p.grad is not None)
