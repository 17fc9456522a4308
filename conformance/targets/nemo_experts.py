"""NeMo Automodel's adapters on experts: `loraspec run conformance.targets.nemo_experts`.

NeMo has experts of its own, `GroupedExperts`, with weights [experts, in, out]. A module of transformers' protocol is
copied into one, which `patch_moe_module` wraps. The target itself is NeMo's loop over experts; `…:grouped` is its
grouped products (`torch_mm`) where the widths are multiples of 16 bytes. NeMo compiles its activations for each shape;
here they run uncompiled.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from conformance.targets.wrapped_layer import library, version_of
from reference.experts_module import check_experts, expected_projections

WRITTEN_FOR = ("nemo-automodel", "0.7.0", "ci/peers builds an environment with it")


@contextlib.contextmanager
def _uncompiled() -> Iterator[None]:
    """Import modules whose functions have the decorator `torch.compile` as they are."""
    compiler = torch.compile
    torch.compile = lambda function=None, **_: function or (lambda function: function)  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = compiler


with library(*WRITTEN_FOR), warnings.catch_warnings(), _uncompiled():
    warnings.simplefilter("ignore")  # torch and optional packages warn while NeMo is imported
    from nemo_automodel.components._peft import lora as nemo
    from nemo_automodel.components.moe.config import MoEConfig
    from nemo_automodel.components.moe.experts import GroupedExperts

CONFORMANCE: dict[str, Any] = {
    "name": "NeMo Automodel GroupedExpertsLoRA",
    "version": version_of("nemo-automodel"),
    "dtypes": ("float32", "float16", "bfloat16"),  # outputs are summed in float32
    "features": {"rslora": "absent"},
    "deviations": {"EXP-MOD-KEPT": "NeMo replaces a module of experts by one of its own"},
}
ACTIVATIONS = {"gated": "swiglu", "interleaved": "quick_geglu", "ungated": "relu2"}


class Experts(nn.Module):
    """NeMo's adapted experts, with the forward of transformers' protocol."""

    def __init__(self, own: Any) -> None:
        super().__init__()
        self.own = own

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """The output of NeMo's module, in which every token counts."""
        mask = torch.ones(len(hidden_states), dtype=torch.bool, device=hidden_states.device)
        y: Tensor = self.own(hidden_states, mask, top_k_weights, top_k_index)
        return y


def patch_moe_module(
    orig_module: nn.Module,
    dim: int = 8,
    alpha: int | float = 32,
    lora_A_init_method: str = "xavier",
    lora_dtype: torch.dtype | None = None,
) -> Any:
    """A copy of a module in NeMo's layout, adapted by NeMo.

    Source: nemo-automodel 0.7.0, `components/_peft/lora.py`, `patch_moe_module`.
    """
    return _patched("loop", orig_module, dim, alpha, lora_A_init_method, lora_dtype)


def _patched(backend: str, module: Any, dim: int, alpha: Any, method: str, dtype: Any) -> Any:
    own = module.own if isinstance(module, Experts) else _of_nemo(module, backend)
    patched = nemo.patch_moe_module(own, dim=dim, alpha=alpha, lora_A_init_method=method, lora_dtype=dtype)
    return Experts(patched).train(module.training)


def _of_nemo(module: Any, backend: str) -> Any:
    """NeMo's module with the weights of one of transformers' protocol; another module is refused."""
    check_experts(module)
    first, _ = expected_projections(module)
    up, down = (w if module.is_transposed else w.mT for w in (getattr(module, first), module.down_proj))
    kind = "ungated" if not module.has_gate else "gated" if module.is_concatenated else "interleaved"
    own = GroupedExperts(
        _config(up, down, ACTIVATIONS[kind], module),
        backend=SimpleNamespace(experts=backend, dispatcher="torch", compile_router_weight=False),
    ).to(up.device)
    with torch.no_grad():
        own.gate_and_up_projs.copy_(up)
        own.down_projs.copy_(down)
        if module.has_bias:
            own.gate_up_proj_bias.copy_(getattr(module, f"{first}_bias"))
            own.down_proj_bias.copy_(module.down_proj_bias)
    return own


def _config(up: Tensor, down: Tensor, activation: str, module: Any) -> Any:
    """NeMo's config of such a module; what concerns its router has any values."""
    experts, hidden, _ = up.shape
    return MoEConfig(
        n_routed_experts=experts,
        n_shared_experts=0,
        n_activated_experts=1,
        n_expert_groups=1,
        n_limited_groups=1,
        train_gate=False,
        gate_bias_update_factor=0.0,
        aux_loss_coeff=0.0,
        score_func="softmax",
        route_scale=1.0,
        dim=hidden,
        inter_dim=down.shape[1],
        moe_inter_dim=down.shape[1],
        norm_topk_prob=False,
        expert_bias=module.has_bias,
        expert_activation=activation,
        dtype=up.dtype,
    )


def expert_adapters(module: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """A [E, r, K] and B [E, N, r] of both projections, as views of NeMo's [E, K, r] and [E, r, N]."""
    return {name: (A.mT, B.mT) for name, (A, B) in _parameters(module.own).items()}


def expert_gradients(module: Any) -> dict[str, tuple[Any, Any]]:
    """Their gradients."""
    found = _parameters(module.own)
    return {name: tuple(None if t.grad is None else t.grad.mT for t in pair) for name, pair in found.items()}  # type: ignore[misc]


def _parameters(own: Any) -> dict[str, tuple[Tensor, Tensor]]:
    first = "gate_up_proj" if own.is_gated else "up_proj"
    return {
        first: (own.lora_gate_and_up_A, own.lora_gate_and_up_B),
        "down_proj": (own.lora_down_A, own.lora_down_B),
    }


def _patch_grouped(
    orig_module: nn.Module,
    dim: int = 8,
    alpha: int | float = 32,
    lora_A_init_method: str = "xavier",
    lora_dtype: torch.dtype | None = None,
) -> Any:
    """NeMo's module with grouped products; its loop where a width is not a multiple of 16 bytes, which they need."""
    module = _patched("torch_mm", orig_module, dim, alpha, lora_A_init_method, lora_dtype)
    weights = (module.own.gate_and_up_projs, module.own.down_projs)
    module.own.use_torch_mm = not any(width * w.element_size() % 16 for w in weights for width in w.shape[1:])
    return module


class grouped:  # noqa: N801  (a target, named as a module would be)
    """The experts with grouped products."""

    CONFORMANCE = CONFORMANCE | {"name": "NeMo Automodel GroupedExpertsLoRA, grouped"}
    patch_moe_module = staticmethod(_patch_grouped)
    expert_adapters = staticmethod(expert_adapters)
    expert_gradients = staticmethod(expert_gradients)
