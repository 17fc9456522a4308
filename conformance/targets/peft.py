"""Hugging Face PEFT's `lora.Linear`, with DoRA and rsLoRA, and its injection: `loraspec run conformance.targets.peft`.

A model is adapted by `peft.inject_adapter_in_model`. PEFT replaces a layer by a wrapper, matches the end of a name,
combines targets with exclusions, and takes other layers than linear ones; a few calls show the first three.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from conformance.targets.wrapped_layer import WrappedLayer, check, library, version_of

WRITTEN_FOR = ("peft", "0.21.2", "pip install 'loraspec[peers]'")
with library(*WRITTEN_FOR):
    import peft
    from peft.tuners.lora.layer import Linear, LoraLayer

CONFORMANCE = {
    "name": "peft lora.Linear",
    "version": version_of("peft"),
    "dropout_positions": ("pre",),
    "features": {
        "state_names": "other",
        "initialisation": "absent",  # PEFT draws lora_A by kaiming_uniform_(a=√5) or gaussian
        "linear_only": "absent",
        "shared_names": "first name",
        "argument_checks": "when used",
    },
}
ADAPTER = "default"


class LinearLoRA(WrappedLayer):
    """PEFT's layer around a linear layer.

    Source: peft 0.21.2, `peft/tuners/lora/layer.py`.
    """

    library = "PEFT"

    def __init__(self, orig_linear: nn.Linear, *args: Any, use_dora: bool = False, **options: Any) -> None:
        super().__init__(orig_linear, *args, more={"use_dora": use_dora}, **options)

    def wrap(self, orig_linear: nn.Linear, dim: int, alpha: Any, dropout: float, **options: Any) -> Any:
        """PEFT's layer, which keeps orig_linear as its base_layer."""
        config = peft.LoraConfig(r=dim, lora_alpha=alpha, lora_dropout=dropout, **options)
        return Linear(orig_linear, ADAPTER, config=config, r=dim, lora_alpha=alpha)

    def adapters(self) -> list[Tensor]:
        """Both adapter matrices, and DoRA's magnitude if there is one."""
        return [*super().adapters(), *self.wrapped.lora_magnitude_vector.parameters()]

    @property
    def lora_A(self) -> Any:
        """The adapter's first linear layer."""
        return self.wrapped.lora_A[ADAPTER]

    @property
    def lora_B(self) -> Any:
        """The adapter's second linear layer."""
        return self.wrapped.lora_B[ADAPTER]

    @property
    def lora_magnitude(self) -> Any:
        """DoRA's magnitude."""
        return self.wrapped.lora_magnitude_vector[ADAPTER].weight

    @property
    def scale(self) -> float:
        """The adapter's scaling."""
        return float(self.wrapped.scaling[ADAPTER])

    @property
    def merged(self) -> bool:
        """Whether the update is merged into the weight."""
        return bool(self.wrapped.merged)

    def merge(self) -> None:
        """PEFT's merge."""
        self.wrapped.merge()

    def unmerge(self) -> None:
        """PEFT's unmerge."""
        self.wrapped.unmerge()


def _config(c: Any, **patterns: Any) -> Any:
    if c.dropout_position not in ("pre", "post"):
        raise ValueError(f"dropout_position = {c.dropout_position!r}: expected pre or post")
    if c.dropout and c.dropout_position != "pre":
        raise NotImplementedError(f"dropout_position = {c.dropout_position!r}: PEFT has pre")
    return peft.LoraConfig(
        r=c.dim,
        lora_alpha=c.alpha,
        lora_dropout=c.dropout,
        use_dora=c.use_dora,
        use_rslora=c.use_rslora,
        **patterns,
    )


def _dtype(given: Any) -> torch.dtype | None:
    found = getattr(torch, str(given).removeprefix("torch."), None)
    if given is not None and not isinstance(found, torch.dtype):
        raise ValueError(f"lora_dtype = {given!r}: expected a dtype")
    return found if given is not None else None


def apply_lora_to_linear_modules(model: nn.Module, peft_config: Any) -> int:
    """PEFT's injection of adapters into a model, with match_all_linear as its target `all-linear`."""
    targets = "all-linear" if peft_config.match_all_linear else peft_config.target_modules or None
    dtype = _dtype(peft_config.lora_dtype)
    config = _config(peft_config, target_modules=targets, exclude_modules=peft_config.exclude_modules or None)
    before = sum(isinstance(module, LoraLayer) for module in model.modules())
    known = set(model.parameters())
    peft.inject_adapter_in_model(config, model, ADAPTER)
    cast_adapters(model, known, dtype)
    return sum(isinstance(module, LoraLayer) for module in model.modules()) - before


def cast_adapters(model: nn.Module, known: set[nn.Parameter], dtype: torch.dtype | None) -> None:
    """Cast the adapters' parameters, but those that were known before, to a dtype; None leaves them."""
    for name, parameter in model.named_parameters() if dtype is not None else ():
        if f".{ADAPTER}" in name and parameter not in known:
            parameter.data = parameter.data.to(dtype)


def patching_by(apply: Callable[[nn.Module, Any], int]) -> Callable[..., Any]:
    """`patch_linear_module` by PEFT's injection into a model of one layer, which `apply` does."""

    def patch_linear_module(
        orig_linear: nn.Module,
        dim: int = 8,
        alpha: Any = 32,
        dropout: float = 0.0,
        dropout_position: str = "post",
        lora_A_init_method: str = "xavier",
        lora_dtype: Any = None,
        use_triton: bool = True,
        *,
        use_dora: bool = False,
        use_rslora: bool = False,
    ) -> Any:
        """The layer that takes the place of the only layer of a model."""
        del lora_A_init_method, use_triton
        model = nn.ModuleDict({"layer": orig_linear})
        options = (dim, alpha, dropout, dropout_position, lora_dtype, use_dora, use_rslora)
        names = ("dim", "alpha", "dropout", "dropout_position", "lora_dtype", "use_dora", "use_rslora")
        chosen = SimpleNamespace(match_all_linear=False, target_modules=["layer"], exclude_modules=None)
        apply(model, SimpleNamespace(**vars(chosen), **dict(zip(names, options, strict=True))))
        return model["layer"]

    return patch_linear_module


patch_linear_module = patching_by(apply_lora_to_linear_modules)

with library(*WRITTEN_FOR):
    check(LinearLoRA)
