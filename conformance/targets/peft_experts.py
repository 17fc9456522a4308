"""Hugging Face PEFT's adapters on parameters, `target_parameters`: `loraspec run conformance.targets.peft_experts`.

PEFT wraps the module of experts once for each parameter, and adds the update of all experts to the weight in each call.
It has no dropout there, and draws A by kaiming_uniform_(a=√5) or gaussian.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from conformance.targets.wrapped_layer import library, version_of

WRITTEN_FOR = ("peft", "0.21.2", "pip install 'loraspec[peers]'")
with library(*WRITTEN_FOR):
    import peft

CONFORMANCE = {
    "name": "peft target_parameters",
    "version": version_of("peft"),
    "features": {"initialisation": "absent"},  # PEFT draws lora_A by kaiming_uniform_(a=√5) or gaussian
    "deviations": {
        "EXP-MOD-KEPT": "PEFT replaces a module of experts by a wrapper",
        "EXP-MOD-TWICE": "the module inside the wrapper does not show that it is wrapped",
        "EXP-MOD-UNFIT": "any parameter is accepted; without is_transposed its shape is read as [experts, out, in]",
        "EXP-MOD-ABSENT": "where no slot has an expert, the module's own loop gives zeros without a graph",
        "EXP-MOD-IDLE": "where no slot has an expert, the module's own loop gives zeros without a graph",
    },
}
ADAPTER = "default"


def patch_moe_module(
    orig_module: nn.Module,
    dim: int = 8,
    alpha: int | float = 32,
    lora_A_init_method: str = "uniform",
    lora_dtype: torch.dtype | None = None,
    *,
    use_rslora: bool = False,
    projections: list[str] | None = None,
) -> Any:
    """PEFT's wrapper around a module of experts.

    Source: peft 0.21.2, `peft/tuners/lora/layer.py`, `ParamWrapper`.
    """
    if lora_A_init_method == "xavier":
        raise NotImplementedError("PEFT draws lora_A by kaiming_uniform_(a=√5) or gaussian")
    if lora_A_init_method not in ("uniform", "kaiming"):
        raise ValueError(f"lora_A_init_method = {lora_A_init_method!r}: expected uniform or kaiming")
    names = projections or [name for name, p in orig_module.named_parameters(recurse=False) if p.ndim == 3]
    holder = nn.Module()
    holder.experts = orig_module
    config = peft.LoraConfig(
        r=dim,
        lora_alpha=alpha,
        use_rslora=use_rslora,
        target_modules=[],
        target_parameters=[f"experts.{name}" for name in names],
    )
    wrapped: Any = peft.inject_adapter_in_model(config, holder).experts
    for wrapper in _wrappers(wrapped):
        for part in (wrapper.lora_A[ADAPTER], wrapper.lora_B[ADAPTER]):
            part.to(lora_dtype or wrapper.get_param().dtype)
    return wrapped


def _wrappers(module: Any) -> Iterator[Any]:
    """The nested wrappers, the outermost first."""
    while hasattr(module, "parameter_name"):
        yield module
        module = module.base_layer


def expert_adapters(module: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """A [E, r, K] and B [E, N, r] of each wrapped parameter, as views."""
    return {w.parameter_name: _unpacked(w, *_weights(w)) for w in _wrappers(module)}


def expert_gradients(module: Any) -> dict[str, tuple[Any, Any]]:
    """Their gradients."""
    found: dict[str, tuple[Any, Any]] = {}
    for wrapper in _wrappers(module):
        a, b = (weight.grad for weight in _weights(wrapper))
        found[wrapper.parameter_name] = (None, None) if a is None or b is None else _unpacked(wrapper, a, b)
    return found


def _weights(wrapper: Any) -> tuple[Tensor, Tensor]:
    return wrapper.lora_A[ADAPTER].weight, wrapper.lora_B[ADAPTER].weight


def _unpacked(wrapper: Any, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """PEFT packs A expert-slowest and B expert-fastest."""
    experts, rank = wrapper.num_experts, wrapper.r[ADAPTER]
    return A.view(experts, rank, -1), B.view(B.shape[0], rank, experts).permute(2, 0, 1)
