"""The feed-forward block of a transformer, with or without a gate, and an adapter on each projection."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .linear import without_autocast
from .projection import Projection, checked, project

ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu2")


def lora_mlp(x: Tensor, gate: Projection | None, up: Projection, down: Projection, activation: str = "silu") -> Tensor:
    """A feed-forward block: ``h = f(gate(x)) ⊙ up(x)``, ``y = down(h)``, each projection with its adapter.

    SwiGLU is f = silu, GeGLU f = gelu or gelu_tanh; without a gate ``h = f(up(x))``, as in ReLU² (relu2). A
    projection is ``p(t) = t W_pᵀ + b_p + scale_p · (t A_pᵀ) B_pᵀ``. The gradients, for g of y's shape:
    ``dh = g W_d + scale_d · (g B_d) A_d``, ``d_gate = dh ⊙ up ⊙ f′(gate)``, ``d_up = dh ⊙ f(gate)``,
    ``dX = Σ_p d_p W_p + scale_p · (d_p B_p) A_p`` over gate and up. The other gradients of each projection are
    those of `lora_linear`.

    Args:
        x: [*, K], floating point; any number of leading dimensions, possibly empty.
        gate, up: (weight [I, K], bias [I] or None, lora_A [r, K], lora_B [I, r], scale) each, the operands of
            `lora_linear` after x; lora_A and lora_B are both None without an adapter; gate is None without a gate.
        down: the same with weight [N, I], bias [N], lora_A [r, I] and lora_B [N, r].
        activation: the name of f, one of "silu" t·σ(t), "gelu" t·Φ(t), "gelu_tanh" (gelu with
            ``Φ(t) ≈ (1 + tanh(√(2/π)(t + 0.044715 t³)))/2``) and "relu2" max(t, 0)².
    Returns:
        [*, N], in the dtype of `lora_linear`'s output. f and the product with up are computed in float32 at
        least, and h is rounded once to the dtype of the projections' outputs.
    Raises:
        ValueError: as in `lora_linear`, beginning with the projection's name; if gate and up differ in width; for
            an unknown activation.
    Source: Shazeer, GLU Variants Improve Transformer (2020); So et al., Primer (2021), for relu2; fused as in
        Unsloth's fast_lora.
    """
    check_mlp(x, gate, up, down, activation)
    lifted = project(x, up, "up")
    if gate is None:
        h = activated(wide(lifted), activation)
    else:
        h = activated(wide(project(x, gate, "gate")), activation) * wide(lifted)
    return project(h.to(lifted.dtype), down, "down")


def activated(t: Tensor, activation: str) -> Tensor:
    """f(t) for each element, in t's dtype."""
    with without_autocast(t):
        if activation == "silu":
            return F.silu(t)
        if activation == "relu2":
            rectified = F.relu(t)
            return rectified * rectified
        return F.gelu(t, approximate="tanh" if activation == "gelu_tanh" else "none")


def wide(t: Tensor) -> Tensor:
    """The tensor in float32 at least, also under autocast, which has no rule for these functions."""
    return t.float() if t.dtype in {torch.float16, torch.bfloat16} else t


def check_mlp(x: Tensor, gate: Projection | None, up: Projection, down: Projection, activation: str) -> None:
    """Refuse projections that do not chain and an unknown activation, with the errors of `lora_mlp`."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation is {activation!r}: expected one of {', '.join(ACTIVATIONS)}")
    width = checked(x, up, "up")[0].shape[0]
    if gate is not None and (found := checked(x, gate, "gate")[0].shape[0]) != width:
        raise ValueError(f"gate gives {found} features but up gives {width}: they must be equal")
    checked(x.new_empty(0, width), down, "down")
