"""h = f(gate) ⊙ up or f(up), and its gradients together with h again; each by one Triton kernel, or by PyTorch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from optimized.dispatch.triton_kernels import why_not_triton
from reference.mlp import activated


def gated_activation(lifts: Sequence[Tensor], activation: str) -> Tensor:
    """h [M, I] from gate and up [M, I], or from up alone, in their dtype.

    If `why_not_triton` gives a reason, PyTorch computes, here and in `gated_activation_gradients`.
    """
    if why_not_triton(*lifts) is None:
        from optimized import kernels

        return kernels.gated_activation(lifts, activation)
    first = activated(lifts[0], activation)
    return first if len(lifts) == 1 else first.mul_(lifts[1])


def gated_activation_gradients(
    d_h: Tensor | None, lifts: Sequence[Tensor], activation: str
) -> tuple[Tensor, list[Tensor]]:
    """Compute h again, and the gradients of the lifts, or no gradients if d_h is None; no operand is modified."""
    if d_h is None:
        return gated_activation(lifts, activation), []
    if why_not_triton(d_h, *lifts) is None:
        from optimized import kernels

        return kernels.gated_activation_gradients(d_h, lifts, activation)
    first = activated(lifts[0], activation)
    if len(lifts) == 1:
        return first, [_derived(d_h, lifts[0], activation)]
    gate, up = lifts
    d_gate, d_up = _derived(d_h * up, gate, activation), d_h * first
    return first.mul_(up), [d_gate, d_up]


def _derived(g: Tensor, t: Tensor, activation: str) -> Tensor:
    """``g ⊙ f′(t)``."""
    if activation == "silu":
        return torch.ops.aten.silu_backward(g, t)  # type: ignore[no-any-return]
    if activation == "relu2":
        return torch.relu(t).mul_(g).mul_(2.0)
    approximate = "tanh" if activation == "gelu_tanh" else "none"
    return torch.ops.aten.gelu_backward(g, t, approximate=approximate)  # type: ignore[no-any-return]
