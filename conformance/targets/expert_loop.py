"""The control for libraries of experts: plain PyTorch's loop over them, `loraspec run conformance.targets.expert_loop`.

Each expert's rows are taken, multiplied by `F.linear` and put back, as transformers' own code does without adapters.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reference
from conformance.targets.wrapped_layer import version_of
from reference.grouped_linear import check_grouped, check_index
from reference.patched_class import patched_class

CONFORMANCE = {"name": "eager PyTorch, a loop over experts", "version": version_of("torch")}


def lora_grouped_linear(
    x: Tensor,
    expert_index: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    lora_A: Tensor,
    lora_B: Tensor,
    scale: float,
    *,
    dropout: float = 0.0,
    dropout_position: str = "post",
    training: bool = False,
) -> Tensor:
    """``y_i = W_e x_i + b_e + dropout(scale · B_e (A_e x_i))`` for each row, one expert after the other."""
    check_grouped(x, weight, bias, lora_A, lora_B)
    check_index(x, expert_index)
    if dropout_position not in ("pre", "post") or not 0 <= dropout <= 1:
        raise ValueError(f"dropout = {dropout}, {dropout_position!r}: expected 0 to 1, pre or post")
    before, after = ((dropout, 0.0) if dropout_position == "pre" else (0.0, dropout)) if training else (0.0, 0.0)
    rows, index = x.reshape(expert_index.numel(), x.shape[-1]), expert_index.reshape(-1)
    chosen, parts = [], []
    for e in range(len(lora_A)):
        own = (index == e).nonzero().flatten()
        taken = rows[own]
        S = F.linear(F.dropout(taken.to(lora_A.dtype), before), lora_A[e]) * scale
        update = F.dropout(F.linear(S, lora_B[e]), after)
        if weight is not None:
            base = F.linear(taken, weight[e].detach(), None if bias is None else bias[e].detach())
            update = base + update.to(base.dtype)
        chosen.append(own)
        parts.append(update if weight is not None else update.to(x.dtype))
    found = torch.cat(parts)
    y = found.new_zeros(len(rows), lora_B.shape[1]).index_copy(0, torch.cat(chosen), found)
    return y.reshape(*x.shape[:-1], lora_B.shape[1])


class LoopedExperts(reference.GroupedExpertsLoRA):
    """A module of experts whose projections are the loop."""

    grouped_linear = staticmethod(lora_grouped_linear)


@functools.wraps(reference.patch_moe_module)
def patch_moe_module(orig_module: nn.Module, *arguments: Any, **options: Any) -> Any:
    """`reference.patch_moe_module` with this loop."""
    module: Any = reference.patch_moe_module(orig_module, *arguments, **options)
    module.__class__ = patched_class(module.original_class, LoopedExperts)
    return module
