"""Right but different grouped layers and modules of experts: folded weights, the router's weight elsewhere."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from reference.experts_module import expected_projections
from tests.baselines.expert_modules import RightExperts, RightModules
from tests.baselines.experts import Right


class Folds(RightExperts):
    """Experts that add the update to the weight in each call, as PEFT does."""

    def project(self, rows: Tensor, index: Tensor, name: str) -> Tensor:
        A, B, scale = self._adapter_of(name, getattr(self, name).mT if self.is_transposed else getattr(self, name))
        weight = getattr(self, name).mT if self.is_transposed else getattr(self, name)
        if self.training and self.dropout_p == 1:
            B = B * 0
        merged = weight + (B @ A * scale).to(weight.dtype)
        y = rows.new_zeros(len(rows), weight.shape[1]) + 0 * merged.sum()
        for e in range(len(weight)):
            own = (index == e).nonzero().flatten()
            bias = getattr(self, f"{name}_bias")[e] if self.has_bias else None
            y = y.index_copy(0, own, F.linear(rows[own], merged[e], bias).to(y.dtype))
        return y


class WeighsBetween(RightExperts):
    """Experts that multiply by the router's weight between the projections: then the second bias is multiplied too."""

    def of_rows(self, rows: Tensor, index: Tensor) -> Tensor:
        up, down = expected_projections(self)
        act: Any = self._apply_gate if self.has_gate else self.act_fn
        h = act(self.project(rows, index, up))
        present = ((index >= 0) & (index < self.num_experts)).unsqueeze(1)
        p = torch.where(present, self.weights, 0.0)
        y = self.project(h * p, index, down)
        if self.has_bias:
            bias = self.down_proj_bias[index.clamp(0, self.num_experts - 1)]
            y = y - torch.where(present, bias, 0.0) * (1 - p)
        return y

    def forward(self, hidden_states: Any, top_k_index: Any, top_k_weights: Any) -> Tensor:
        self.weights = top_k_weights.reshape(-1, 1)
        return super().forward(hidden_states, top_k_index, top_k_weights)

    def per_slot(self, y: Tensor, p: Tensor, present: Tensor) -> Tensor:
        return super().per_slot(y, torch.ones_like(p), present)


class FoldsRows(Right):
    """A grouped layer that multiplies by ``W + s·B A``."""

    def output(self, x: Tensor, p: Any, mask: Any) -> Tensor:
        if p.weight is None or any(part is not None for part in mask):
            return super().output(x, p, mask)
        return F.linear(x, p.weight + (p.B @ p.A * p.scale).to(x.dtype), p.bias)


def modules(kind: type) -> Any:
    return SimpleNamespace(patch_moe_module=type(kind.__name__, (RightModules,), {"kind": kind})().patch_moe_module)


VARIANTS: dict[str, Any] = {
    "folds the update into the weight": modules(Folds),
    "weighs between the projections": modules(WeighsBetween),
    "folds each row's expert": FoldsRows(),
    "right, as the twins' base": Right(),
    "right modules": RightModules(),
}
