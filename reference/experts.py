"""Adapters on the experts of a mixture: a LoRA layer for each expert and projection of one module."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .config import (
    PeftConfig,
    check_alpha,
    check_dim,
    check_dropout,
    check_flag,
    check_init_method,
    parse_dtype,
)
from .experts_module import bias_of, check_experts, check_slots, chosen_projections, expert_arguments, weight_of
from .experts_module import expected_projections as names_of
from .grouped_linear import lora_grouped_linear
from .linear import widen, without_autocast
from .patched_class import patched_class
from .rollback import undone_on_error


class GroupedExpertsLoRA(nn.Module):
    """Experts with adapters: ``y_t = Σ_j p_tj · f_e(x_t)`` over the slots j of token t, with e its expert.

    ``f_e(x) = down_e(act(up_e(x)))``, where each adapted projection is a LoRA layer, see `lora_grouped_linear`. A slot
    whose index is below 0 or at least E adds nothing, and its p is not read. Slots are summed in float32 at least.

    `patch_moe_module` makes a module's class one of this class and of the module's own. Weights and biases stay
    Parameters under their names and are frozen.

    Attributes:
        lora_A, lora_B: by projection (gate_up_proj or up_proj, down_proj) a Parameter [E, r, K] and [E, N, r]; the
            rows of B are in the order in which the weight is stored, interleaved or not.
        scale: alpha/dim, or alpha/√dim with use_rslora.   scales: by projection, where a config gives them other ranks.
            There is no attribute `alpha`: the experts of GPT-OSS have one of their own.
        dropout_p, dropout_position, use_rslora: as in `PeftConfig`.
        merged: whether the weights include the updates.
    Source: NeMo Automodel `GroupedExpertsLoRA`, over the protocol for experts of transformers 5.
    """

    scale: float
    scales: dict[str, float]
    dropout_p: float
    dropout_position: str
    use_rslora: bool
    lora_A: nn.ParameterDict
    lora_B: nn.ParameterDict
    original_class: type[nn.Module] = nn.Module
    grouped_linear = staticmethod(lora_grouped_linear)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The weighted sum of each token's experts; a merged module computes it from the weights alone.

        Args:
            hidden_states: [*, H], under whatever name the module's own forward gives it.
            top_k_index: [*, k] integers.   top_k_weights: [*, k].
        Returns:
            [*, H] in the dtype of hidden_states.
        Raises:
            ValueError: if the shapes of the three do not fit; as in `lora_grouped_linear`.
        """
        hidden, index, weights = expert_arguments(self, args, kwargs)
        check_slots(type(self).__name__, hidden, index, weights)
        slots = index.shape[-1]
        tokens = hidden.reshape(index.numel() // max(slots, 1), hidden.shape[-1])
        rows = tokens.unsqueeze(1).expand(-1, slots, -1).reshape(index.numel(), hidden.shape[-1])
        y = self.of_rows(rows, index.reshape(-1))
        experts = len(weight_of(self, "down_proj"))
        present = ((index >= 0) & (index < experts)).reshape(-1, 1)
        p = torch.where(present, weights.reshape(-1, 1), 0.0)
        summands = torch.where(present, y, 0.0).to(torch.promote_types(y.dtype, torch.float32)) * p
        return summands.reshape(*index.shape, hidden.shape[-1]).sum(-2).to(hidden.dtype)

    def of_rows(self, rows: Tensor, index: Tensor) -> Tensor:
        """``f_e(x)`` of each row [M, H], whose expert e is its index [M]; 0 where there is no such expert."""
        up, down = names_of(self)
        act: Any = self._apply_gate if getattr(self, "has_gate", True) else self.act_fn
        y = self.project(act(self.project(rows, index, up)), index, down)
        norm: Any = self.post_expert_norm if getattr(self, "has_post_expert_norm", False) else None
        return y if norm is None else norm(y)

    def project(self, rows: Tensor, index: Tensor, name: str) -> Tensor:
        """One projection of each row, with its adapter unless it has none or is merged."""
        weight, bias = weight_of(self, name), bias_of(self, name)
        A, B, scale = self._adapter_of(name, weight)
        drop: Any = {"dropout": self.dropout_p, "dropout_position": self.dropout_position, "training": self.training}
        return self.grouped_linear(rows, index, weight, bias, A, B, scale, **drop)

    def _adapter_of(self, name: str, weight: Tensor) -> tuple[Tensor, Tensor, float]:
        """A, B and scale of a projection; where it has no adapter or is merged, of rank 0, whose update is 0."""
        if self.merged or name not in self.lora_A:
            experts, n, k = weight.shape
            return weight.new_empty(experts, 0, k), weight.new_empty(experts, n, 0), 1.0
        return self.lora_A[name], self.lora_B[name], self.scales[name]

    @property
    def merged(self) -> bool:
        """Whether the weights include the updates."""
        return any(getattr(self, _kept(name)) is not None for name in self.lora_A)

    @torch.no_grad()
    def init_lora_weights(self, init_method: str) -> None:
        """Draw each expert's A as a linear layer's, independently, and set B = 0, in place.

        Args:
            init_method: "xavier" is ``xavier_normal_`` of [r, K], "uniform" and "kaiming" are
                ``kaiming_uniform_(a=√5)``.
        Raises:
            ValueError: for another name.
        """
        check_init_method("init_method", init_method)
        self.unmerge()  # the merged update is not that of the new adapter
        for name, A in self.lora_A.items():
            for own in A:
                if init_method == "xavier":
                    nn.init.xavier_normal_(own)
                else:
                    nn.init.kaiming_uniform_(own, a=math.sqrt(5))
            nn.init.zeros_(self.lora_B[name])

    @torch.no_grad()
    def merge(self) -> None:
        """Add every update to its weight in place: ``W_e ← W_e + scale · B_e A_e``, as stored, rounded once.

        A merged module stays as it is. As in `LinearLoRA.merge`, the adapters must not change until `unmerge`.
        """
        if self.merged:
            return
        for name in self.lora_A:
            with without_autocast(getattr(self, name)):
                A, B = widen(self.lora_A[name]), widen(self.lora_B[name])
                weight = weight_of(self, name)
                setattr(self, _kept(name), getattr(self, name).detach().clone())
                weight.copy_(widen(weight) + B @ A * self.scales[name])

    @torch.no_grad()
    def unmerge(self) -> None:
        """Restore the weights from before `merge`, bit for bit; a module that is not merged stays as it is."""
        for name in self.lora_A:
            before = getattr(self, _kept(name))
            if before is not None:
                getattr(self, name).copy_(before)
                setattr(self, _kept(name), None)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Write the unmerged weights, so that the checkpoint loads into any module."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in self.lora_A if self.merged else ():
            destination[prefix + name] = getattr(self, _kept(name))

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        """Unmerge first, because a checkpoint holds the unmerged weights."""
        self.unmerge()
        super()._load_from_state_dict(state_dict, prefix, *args)


def patch_moe_module(
    orig_module: nn.Module,
    dim: int = PeftConfig.dim,
    alpha: int | float = PeftConfig.alpha,
    lora_A_init_method: str = PeftConfig.lora_A_init,
    lora_dtype: torch.dtype | str | None = PeftConfig.lora_dtype,
    *,
    dropout: float = PeftConfig.dropout,
    dropout_position: str = PeftConfig.dropout_position,
    use_rslora: bool = PeftConfig.use_rslora,
    projections: Sequence[str] | None = None,
) -> GroupedExpertsLoRA:
    """Give a module of experts adapters in place: the same object, its class changed to a `GroupedExpertsLoRA`.

    Parameter names, dtype, device, training flag and hooks stay.

    Args:
        orig_module: a module of transformers' protocol for experts: 3-D Parameters gate_up_proj (or, with
            ``has_gate = False``, up_proj) and down_proj, `is_transposed`, and
            ``forward(hidden_states, top_k_index, top_k_weights)``.
        dim, alpha, lora_dtype, dropout, dropout_position, use_rslora: as in `PeftConfig`.
        lora_A_init_method: "xavier", "uniform" or "kaiming".
        projections: the projections to adapt; None for all.
    Returns:
        orig_module itself.
    Raises:
        ValueError: naming the class, for a module without indices, orientation, projections or floating point
            weights, and for one with an adapter; for options out of range and unknown projections. After any error
            the module is unchanged.
    Source: NeMo Automodel `patch_moe_module`.
    """
    check_experts(orig_module)
    options = dict.fromkeys(chosen_projections(orig_module, projections), (dim, alpha))
    return adapt_experts(orig_module, options, lora_A_init_method, lora_dtype, dropout, dropout_position, use_rslora)


def adapt_experts(
    module: Any,
    options: Mapping[str, tuple[int, int | float]],
    lora_A_init_method: str,
    lora_dtype: torch.dtype | str | None,
    dropout: float,
    dropout_position: str,
    use_rslora: bool,
    kind: Any = GroupedExpertsLoRA,
) -> GroupedExpertsLoRA:
    """Implement `patch_moe_module`, with a rank and an alpha for each projection; the module has been checked."""
    for dim, alpha in options.values():
        check_dim(dim)
        check_alpha(alpha)
    check_dropout(dropout, dropout_position)
    check_init_method("lora_A_init_method", lora_A_init_method)
    check_flag("use_rslora", use_rslora)
    dtype = parse_dtype(lora_dtype)
    with undone_on_error([module], module.parameters()):
        module.requires_grad_(False)
        module.lora_A, module.lora_B = nn.ParameterDict(), nn.ParameterDict()
        module.scales = {}
        for name, (dim, alpha) in options.items():
            experts, n, k = weight_of(module, name).shape
            weight = getattr(module, name)
            placed: dict[str, Any] = {"device": weight.device, "dtype": dtype or weight.dtype}
            module.lora_A[name] = nn.Parameter(torch.empty(experts, dim, k, **placed))
            module.lora_B[name] = nn.Parameter(torch.empty(experts, n, dim, **placed))
            module.scales[name] = alpha / (math.sqrt(dim) if use_rslora else dim)
            module.register_buffer(_kept(name), None, persistent=False)
        module.scale = next(iter(module.scales.values()))
        module.dropout_p, module.dropout_position = float(dropout), dropout_position
        module.use_rslora = use_rslora
        module.lora_A.train(module.training)
        module.lora_B.train(module.training)
        original: Any = type(module)
        module.__class__ = patched_class(original, kind)
        module.init_lora_weights(lora_A_init_method)
    return module  # type: ignore[no-any-return]


def _kept(name: str) -> str:
    """The buffer that keeps a projection's weights from before a merge."""
    return f"unmerged_{name}"
