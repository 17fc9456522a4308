"""PEFT's injection around a packed base, shared by the targets of PEFT on bitsandbytes, torchao and HQQ."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from conformance.targets import peft
from conformance.targets.packed_formats import PACKED


def declared(*formats: str, compute_dtype: bool = False, **conventions: str) -> dict[str, Any]:
    """The declaration of PEFT on a library that has these formats and conventions."""
    features = {f"format_{name}": "absent" for name in PACKED if name not in formats}
    features["packed_dora"] = "absent"  # under names of its own: lora_magnitude_vector
    features["packed_merge"] = "requantised"
    if not compute_dtype:
        features["compute_dtype"] = "absent"
    if not {"nf4", "fp4"} & {*formats}:
        features["nested_absmax"] = "absent"
    known: dict[str, Any] = dict(peft.CONFORMANCE)
    return {
        "dropout_positions": known["dropout_positions"],
        "features": {**known["features"], **features, **conventions},
    }


def patching(loaded_of: Callable[[nn.Module], Mapping[str, Any]]) -> Callable[..., Any]:
    """A `patch_linear_module` that injects PEFT's layer around a packed base.

    Args:
        loaded_of: of a base, the attributes of the model by which PEFT knows how transformers has loaded it.
    """

    def patch_linear_module(
        orig_linear: nn.Module,
        dim: int = 8,
        alpha: Any = 32,
        dropout: float = 0.0,
        dropout_position: str = "post",
        lora_A_init_method: str = "xavier",  # noqa: ARG001  PEFT has its own
        lora_dtype: Any = None,
        use_triton: bool = True,  # noqa: ARG001
        *,
        use_dora: bool = False,
        use_rslora: bool = False,
    ) -> Any:
        """PEFT's layer around a packed base, by injection into a model of one layer."""
        model = nn.ModuleDict({"layer": orig_linear})
        for name, value in loaded_of(orig_linear).items():
            setattr(model, name, value)
        config = SimpleNamespace(
            match_all_linear=False,
            target_modules=["layer"],
            exclude_modules=None,
            dim=dim,
            alpha=alpha,
            dropout=dropout,
            dropout_position=dropout_position,
            lora_dtype=lora_dtype,
            use_dora=use_dora,
            use_rslora=use_rslora,
        )
        peft.apply_lora_to_linear_modules(model, config)
        return model["layer"]

    return patch_linear_module


def base_of(module: Any) -> Any:
    """The packed base in PEFT's layer; a base as it is."""
    return module.get_base_layer() if hasattr(module, "get_base_layer") else module


def copied(linear: nn.Linear, bias: bool = True) -> nn.Linear:
    """A copy of an nn.Linear for a library that packs it in place; without a gradient, in the same mode."""
    layer = nn.Linear.__new__(nn.Linear)
    nn.Module.__init__(layer)
    layer.in_features, layer.out_features = linear.in_features, linear.out_features
    layer.weight = nn.Parameter(linear.weight.detach().clone(), requires_grad=False)
    copy: Tensor | None = linear.bias.detach().clone() if bias and linear.bias is not None else None
    layer.register_parameter("bias", None if copy is None else nn.Parameter(copy, requires_grad=False))
    return layer.train(linear.training)
