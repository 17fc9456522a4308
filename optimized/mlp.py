"""The feed-forward block as one autograd node, `nodes.mlp`."""

from torch import Tensor

from optimized.dispatch.fused_node import why_not_fused
from optimized.nodes.blocks import flat, operands_of
from optimized.nodes.mlp import LoRAMLP
from reference.mlp import check_mlp
from reference.mlp import lora_mlp as plain_lora_mlp
from reference.projection import Projection


def lora_mlp(x: Tensor, gate: Projection | None, up: Projection, down: Projection, activation: str = "silu") -> Tensor:
    """``y = down(f(gate(x)) ⊙ up(x))``: `reference.lora_mlp`, with its shapes, dtypes and errors.

    Besides the parameters, x, gate(x) and up(x) are saved for backward, ``K + 2I`` numbers per token. Backward computes
    h, and the products of x and h with lora_A, again. If `why_not_fused` gives a reason, the reference computes;
    `optimized.activations` computes f.
    """
    check_mlp(x, gate, up, down, activation)
    inner = {"up": up} if gate is None else {"gate": gate, "up": up}
    wide = operands_of(x, **inner)
    projections = [*wide, *operands_of(x.new_empty(0, wide[0].weight.shape[0]), down=down)]
    if why_not_fused(x, *flat(projections)):
        return plain_lora_mlp(x, gate, up, down, activation)
    return LoRAMLP.apply([p.scale for p in projections], activation, x, *flat(projections))  # type: ignore[no-any-return,no-untyped-call]
