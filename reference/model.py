"""Functions that put adapters into a model: into one linear module, or into all modules that a config chooses."""

import functools
import warnings
from typing import Any

import torch
from torch import nn

from .config import PeftConfig, check_flag
from .layer import LinearLoRA, TritonLinearLoRA, check_adaptable
from .matching import ModuleMatcher


def patch_linear_module(
    orig_linear: nn.Linear,
    dim: int = PeftConfig.dim,
    alpha: int | float = PeftConfig.alpha,
    dropout: float = PeftConfig.dropout,
    dropout_position: str = PeftConfig.dropout_position,
    lora_A_init_method: str = PeftConfig.lora_A_init,
    lora_dtype: torch.dtype | str | None = PeftConfig.lora_dtype,
    use_triton: bool = True,  # the seed's default, although PeftConfig's is False
    *,
    use_dora: bool = PeftConfig.use_dora,
    use_rslora: bool = PeftConfig.use_rslora,
    use_memory_efficient_lora: bool = PeftConfig.use_memory_efficient_lora,
) -> LinearLoRA:
    """Give a linear module an adapter in place: the same object, its class changed to a `LinearLoRA`.

    Parameter names, dtype, device, training flag and hooks stay. A subclass of nn.Linear with its own
    forward keeps that forward for the base product. DoRA needs the base product of nn.Linear.

    Args:
        orig_linear: an nn.Linear, or an instance of a subclass; the meta device is fine.
        use_triton: use `TritonLinearLoRA` instead of `LinearLoRA`; both compute the same values here.
        the rest: as in `LinearLoRA`.
    Returns:
        orig_linear itself.
    Raises:
        ValueError: for a module that is not an nn.Linear or already has an adapter, and for options out of range,
            as in `LinearLoRA`; the module is then unchanged.
    Source: NeMo Automodel `patch_linear_module`.
    """
    check_adaptable(orig_linear, use_dora)
    check_flag("use_triton", use_triton)
    LinearLoRA._init_adapter(
        orig_linear,
        dim,
        alpha,
        dropout,
        dropout_position,
        lora_A_init_method,
        lora_dtype,
        use_rslora=use_rslora,
        use_memory_efficient_lora=use_memory_efficient_lora,
        use_dora=use_dora,
    )
    original: Any = type(orig_linear)
    patched: Any = orig_linear
    patched.__class__ = patched_class(original, TritonLinearLoRA if use_triton else LinearLoRA)
    return patched  # type: ignore[no-any-return]


@functools.cache  # one class for all layers of a kind
def patched_class(original: Any, lora: Any) -> Any:
    """The class of an adapted `original`: `lora` itself for nn.Linear, else a class derived from `lora` and `original`.

    `lora` is the first base, so that its ``super().forward`` is the forward of `original`.
    """
    if original is nn.Linear:
        return lora
    return type(f"{lora.__name__}Of{original.__name__}", (lora, original), {"__reduce_ex__": _reduce})


def _reduce(self: Any, _protocol: object) -> tuple[Any, ...]:
    """Pickle the two bases, because pickle cannot find the derived class in a module."""
    lora, original = type(self).__bases__
    return _new, (original, lora), self.__getstate__()


def _new(original: Any, lora: Any) -> Any:
    cls = patched_class(original, lora)
    return cls.__new__(cls)


def apply_lora_to_linear_modules(model: nn.Module, peft_config: PeftConfig) -> int:
    """Patch the linear modules that a config chooses and freeze every parameter that is not an adapter's.

    A module with several names is patched once. With target patterns, one matching name is enough; with
    exclude_modules or match_all_linear, all its names must match. If the class of the model or its
    ``config.architectures`` contains CausalLM, match_all_linear leaves ``lm_head`` out. If no module matches, a
    warning lists the names tried.

    Args:
        model: changed in place.
        peft_config: the modules to adapt (see `ModuleMatcher`) and the options of the adapters.
    Returns:
        the number of patched modules.
    Raises:
        ValueError: if a chosen module already has an adapter, naming it, or the config's choices exclude each
            other; the model is then unchanged.
    Source: NeMo Automodel `apply_lora_to_linear_modules`.
    """
    c = peft_config
    matcher = ModuleMatcher(c.target_modules, c.exclude_modules, c.match_all_linear, _is_causal_lm(model))
    names = _names_of_linear_modules(model)
    any_or_all = any if not (c.match_all_linear or c.exclude_modules) else all
    chosen = [m for m in names if any_or_all(matcher.match(m, name) for name in names[m])]
    for module in chosen:
        try:
            check_adaptable(module, c.use_dora)
        except ValueError as error:
            raise ValueError(f"{names[module][0]}: {error}") from None
    if not chosen:
        tried = ", ".join(name for all_names in names.values() for name in all_names)
        warnings.warn(f"no linear module is chosen by {c}; names tried: {tried}", stacklevel=2)

    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for module in chosen:
        patch_linear_module(
            module,
            c.dim,
            c.alpha,
            c.dropout,
            c.dropout_position,
            c.lora_A_init,
            c.lora_dtype,
            c.use_triton,
            use_dora=c.use_dora,
            use_rslora=c.use_rslora,
            use_memory_efficient_lora=c.use_memory_efficient_lora,
        )
    for layer in model.modules():
        if isinstance(layer, LinearLoRA):  # also the layers of an earlier call
            layer.lora_A.requires_grad_(True)
            layer.lora_B.requires_grad_(True)
            if layer.lora_magnitude is not None:
                layer.lora_magnitude.requires_grad_(True)
    return len(chosen)


def _names_of_linear_modules(model: nn.Module) -> dict[nn.Linear, list[str]]:
    """Every linear module with all its names, in registration order, except the parts of adapters."""
    parts = {part for m in model.modules() if isinstance(m, LinearLoRA) for part in (m.lora_A, m.lora_B)}
    names: dict[nn.Linear, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.Linear) and module not in parts:
            names.setdefault(module, []).append(name)
    return names


def _is_causal_lm(model: nn.Module) -> bool:
    architectures = getattr(getattr(model, "config", None), "architectures", None) or []
    return any("CausalLM" in name for name in [type(model).__name__, *architectures])
