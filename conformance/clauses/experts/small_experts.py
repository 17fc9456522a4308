"""Small modules of experts that follow the protocol of transformers 5, each with another layout and gate."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn


class SmallExperts(nn.Module):
    """Experts as a loop over them, as transformers' own eager code; subclasses say how weights are stored.

    The attribute `alpha` is the module's own, as that of GPT-OSS's experts is.
    """

    is_transposed, is_concatenated, has_bias, has_gate, has_post_expert_norm = False, True, False, True, False
    first = "gate_up_proj"

    def __init__(self, experts: int, hidden: int, inner: int, slots: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.config = SimpleNamespace(num_experts_per_tok=slots, _experts_implementation="eager")
        self.num_experts, self.alpha, self.limit = experts, 1.702, 7.0
        wide = 2 * inner if self.has_gate else inner
        for name, n, k in ((self.first, wide, hidden), ("down_proj", hidden, inner)):
            shape = (experts, k, n) if self.is_transposed else (experts, n, k)
            self.register_parameter(name, nn.Parameter(torch.zeros(shape, dtype=dtype)))
            if self.has_bias:
                self.register_parameter(f"{name}_bias", nn.Parameter(torch.zeros(experts, n, dtype=dtype)))

    def _apply_gate(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return nn.functional.silu(gate) * up

    def act_fn(self, t: Tensor) -> Tensor:
        """The activation of experts without a gate."""
        return nn.functional.relu(t) ** 2

    def _project(self, x: Tensor, name: str, e: int) -> Tensor:
        weight, bias = getattr(self, name)[e], getattr(self, f"{name}_bias")[e] if self.has_bias else None
        return nn.functional.linear(x, weight.t() if self.is_transposed else weight, bias)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """The weighted sum of each token's experts; an index out of range adds nothing."""
        y = torch.zeros_like(hidden_states)
        for e in range(self.num_experts):
            token, slot = torch.where(top_k_index == e)
            if not len(token):
                continue
            h = self._project(hidden_states[token], self.first, e)
            f = self._project(self._apply_gate(h) if self.has_gate else self.act_fn(h), "down_proj", e)
            y.index_add_(0, token, (f * top_k_weights[token, slot, None]).to(y.dtype))
        return y


class GatedExperts(SmallExperts):
    """As Mixtral, Qwen3-MoE and DeepSeek-V3: gate then up, weights [E, out, in]."""


class InterleavedExperts(SmallExperts):
    """As GPT-OSS: weights [E, in, out], gate and up interleaved, biases, a clamped gate."""

    is_transposed, is_concatenated, has_bias = True, False, True

    def _apply_gate(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up[..., ::2], gate_up[..., 1::2]
        gate, up = gate.clamp(max=self.limit), up.clamp(min=-self.limit, max=self.limit)
        return (up + 1) * (gate * torch.sigmoid(gate * self.alpha))


class UngatedExperts(SmallExperts):
    """As NemotronH: no gate, up_proj and down_proj, the square of relu."""

    has_gate, first = False, "up_proj"


KINDS: dict[str, type[SmallExperts]] = {
    "gated": GatedExperts,
    "interleaved": InterleavedExperts,
    "ungated": UngatedExperts,
}


class MixtureModel(nn.Module):
    """A model with two layers of a router, experts, a shared expert and an attention projection."""

    def __init__(self, kind: str = "gated", *, slots: int = 2, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.layers = nn.ModuleList(self._layer(kind, slots, dtype) for _ in range(2))
        first: Any = self.layers[0]
        self.config = first.mlp.experts.config

    @staticmethod
    def _layer(kind: str, slots: int, dtype: torch.dtype) -> nn.Module:
        layer: Any = nn.Module()
        layer.q_proj = nn.Linear(4, 4, dtype=dtype)
        layer.mlp = nn.Module()
        layer.mlp.router = nn.Linear(4, 3, dtype=dtype)
        layer.mlp.experts = KINDS[kind](3, 4, 6, slots, dtype)
        layer.mlp.shared_expert = nn.Linear(4, 4, dtype=dtype)
        for parameter in layer.parameters():
            nn.init.normal_(parameter)
        return layer  # type: ignore[no-any-return]

    def names(self) -> tuple[str, str]:
        """The names of the projections of one module of experts."""
        first: Any = self.layers[0]
        return first.mlp.experts.first, "down_proj"
