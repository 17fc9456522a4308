"""Right adapters on modules of experts; twins override one method of the class of adapted modules, or of the target."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import reference
from reference.experts import adapt_experts
from reference.experts_module import check_experts, chosen_projections
from reference.model import adapt_model


class RightExperts(reference.GroupedExpertsLoRA):
    """The class of an adapted module, whose output is split into the loop's parts."""

    def per_slot(self, y: Tensor, p: Tensor, present: Tensor) -> Tensor:
        """What a slot adds: `p·f`, and 0 where it is absent."""
        return torch.where(present, y, 0.0).to(torch.promote_types(y.dtype, torch.float32)) * torch.where(present, p, 0)

    def weighed(self, summands: Tensor, hidden: Tensor) -> Tensor:
        """The sum over slots [T, k, H]."""
        return summands.sum(-2).to(hidden.dtype)

    def routed(self, index: Tensor) -> Tensor:
        """The expert of each row."""
        return index

    def forward(self, hidden_states: Any, top_k_index: Any, top_k_weights: Any) -> Tensor:
        slots = top_k_index.shape[-1]
        rows = hidden_states.unsqueeze(1).expand(-1, slots, -1).reshape(-1, hidden_states.shape[-1])
        index = self.routed(top_k_index.reshape(-1))
        y = self.of_rows(rows, index)
        present = ((index >= 0) & (index < self.num_experts)).reshape(-1, 1)
        summands = self.per_slot(y, top_k_weights.reshape(-1, 1), present)
        return self.weighed(summands.reshape(*top_k_index.shape, hidden_states.shape[-1]), hidden_states)


class RightModules:
    """A target for the modules of the group `experts`."""

    kind: type[reference.GroupedExpertsLoRA] = RightExperts
    PeftConfig = reference.PeftConfig

    @property
    def GroupedExpertsLoRA(self) -> Any:
        return self.kind

    def refuse(self, module: Any) -> None:
        """Raise for a module that cannot be adapted."""
        check_experts(module)

    def patch_moe_module(
        self,
        orig_module,
        dim=8,
        alpha=32,
        lora_A_init_method="xavier",
        lora_dtype=None,
        *,
        dropout=0.0,
        dropout_position="post",
        use_rslora=False,
        projections=None,
    ):
        self.refuse(orig_module)
        options = dict.fromkeys(chosen_projections(orig_module, projections), (dim, alpha))
        return adapt_experts(
            orig_module, options, lora_A_init_method, lora_dtype, dropout, dropout_position, use_rslora, self.kind
        )

    def apply_lora_to_linear_modules(self, model, peft_config):
        return adapt_model(model, peft_config, reference.patch_linear_module, self.kind)
