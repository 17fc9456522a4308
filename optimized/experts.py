"""The experts of a mixture with adapters, whose rows are sorted once for both projections."""

import functools
from typing import Any

import torch
from torch import Tensor, nn

import reference
from optimized.dispatch.fused_node import why_not_fused
from optimized.grouped_linear import grouped_linear, lora_grouped_linear
from optimized.groups import Groups
from reference.experts_module import bias_of, check_slots, expected_projections, expert_arguments, weight_of
from reference.patched_class import patched_class

WHOLE = 64  # elements of a loop over vectors, in every dtype and instruction set


class GroupedExpertsLoRA(reference.GroupedExpertsLoRA):
    """`reference.GroupedExpertsLoRA` with one node for each projection, over rows that are sorted once.

    Tokens are gathered in the order of their experts, so that they are not repeated for each slot first, and absent
    slots are left out. If `why_not_fused` gives a reason, the reference computes.
    """

    grouped_linear = staticmethod(lora_grouped_linear)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The weighted sum of each token's experts: `reference.GroupedExpertsLoRA.forward`, with its errors."""
        hidden, index, weights = expert_arguments(self, args, kwargs)
        if why_not_fused(hidden, index, weights, *self.lora_A.values(), *self.lora_B.values()):
            return super().forward(*args, **kwargs)
        check_slots(type(self).__name__, hidden, index, weights)
        slots, flat = index.shape[-1], index.reshape(-1)
        groups = Groups.of_index(flat, len(weight_of(self, "down_proj")))
        assert groups.order is not None
        tokens = hidden.reshape(flat.numel() // max(slots, 1), hidden.shape[-1])
        rows = tokens.index_select(0, groups.order // max(slots, 1))
        y = self._of_sorted(rows, groups._replace(order=None))
        p = weights.reshape(-1).index_select(0, groups.order).unsqueeze(1)
        summands = y.to(torch.promote_types(y.dtype, torch.float32)) * p
        whole = summands.new_zeros(flat.numel(), hidden.shape[-1]).index_copy(0, groups.order, summands)
        return whole.reshape(*index.shape, hidden.shape[-1]).sum(-2).to(hidden.dtype)

    def _of_sorted(self, rows: Tensor, groups: Groups) -> Tensor:
        """``f_e(x)`` of each sorted row."""
        up, down = expected_projections(self)
        y = self._project_sorted(self._activated(self._project_sorted(rows, groups, up), groups), groups, down)
        norm: Any = self.post_expert_norm if getattr(self, "has_post_expert_norm", False) else None
        return y if norm is None else norm(y)

    def _activated(self, u: Tensor, groups: Groups) -> Tensor:
        """The activation of sorted rows.

        On a CPU torch computes whole vectors otherwise than the elements that remain. So that the module's own bits
        come out, experts whose rows are no whole vectors are activated one by one, as the module does it itself.
        """
        act: Any = self._apply_gate if getattr(self, "has_gate", True) else self.act_fn
        if not u.is_cpu or weight_of(self, "down_proj").shape[2] % WHOLE == 0 or not groups.rows:
            return act(u)  # type: ignore[no-any-return]
        return torch.cat([act(u[own]) for _, own in groups.busy()])

    def _project_sorted(self, rows: Tensor, groups: Groups, name: str) -> Tensor:
        """One projection of the sorted rows, with its adapter unless it has none or is merged."""
        weight, bias = weight_of(self, name), bias_of(self, name)
        A, B, scale = self._adapter_of(name, weight)
        rate = self.dropout_p if self.training else 0.0
        return grouped_linear(rows, groups, weight, bias, A, B, scale, rate, self.dropout_position, True)


@functools.wraps(reference.patch_moe_module)
def patch_moe_module(orig_module: nn.Module, *args: Any, **kwargs: Any) -> GroupedExpertsLoRA:
    """`reference.patch_moe_module`, signature and defaults included, with the class of `optimized`."""
    module: Any = reference.patch_moe_module(orig_module, *args, **kwargs)
    module.__class__ = patched_class(module.original_class, GroupedExpertsLoRA)
    return module  # type: ignore[no-any-return]
