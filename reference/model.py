"""Functions that put adapters into a model: into one linear module, or into all modules that a config chooses."""

import difflib
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .base_layer import check_adaptable, is_conv1d
from .compiled_names import WRAPPED, named_modules
from .config import PeftConfig, check_flag, parse_dtype
from .expert_targets import chosen_experts, warn_of_experts
from .experts import GroupedExpertsLoRA, adapt_experts
from .hybrid import LINEAR_LAYERS
from .layer import LinearLoRA, TritonLinearLoRA
from .matching import ModuleMatcher, wildcard_match
from .patched_class import patched_class
from .rollback import undone_on_error
from .stored_weight import is_packed_elsewhere


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
    forward keeps that forward for the base product, and a weight that is computed, as by weight_norm, stays
    computed: neither can be merged. DoRA needs the base product of nn.Linear.

    Args:
        orig_linear: an nn.Linear, an instance of a subclass, or a Conv1D of transformers, whose weight stays
            [K, N]; the meta device is fine.
        use_triton: use `TritonLinearLoRA` instead of `LinearLoRA`; both compute the same values here.
        the rest: as in `LinearLoRA`.
    Returns:
        orig_linear itself.
    Raises:
        ValueError: for a module of another class or with an adapter, for a weight that is not floating point, and
            for options out of range, as in `LinearLoRA`. After any error the module is unchanged.
    Source: NeMo Automodel `patch_linear_module`.
    """
    check_adaptable(orig_linear, use_dora, parse_dtype(lora_dtype))
    check_flag("use_triton", use_triton)
    original: Any = nn.Linear if is_conv1d(orig_linear) else type(orig_linear)
    patched: Any = orig_linear
    with undone_on_error([patched], patched.parameters()):
        LinearLoRA._init_adapter(
            patched,
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
        patched.__class__ = patched_class(original, TritonLinearLoRA if use_triton else LinearLoRA)
    return patched  # type: ignore[no-any-return]


def apply_lora_to_linear_modules(model: nn.Module, peft_config: PeftConfig) -> int:
    """Patch the linear modules and the experts that a config chooses; freeze every parameter that is not an adapter's.

    Linear modules are nn.Linear, its subclasses, and transformers' Conv1D. A module with several names is patched once.
    With target patterns, one matching name is enough; with exclude_modules or match_all_linear, all its names must
    match. If the class of the model or its ``config.architectures`` contains CausalLM, match_all_linear leaves
    ``lm_head`` out. Experts are chosen by target_parameters alone, and a module of experts counts once; without other
    choices no linear module is adapted.

    Args:
        model: changed in place.
        peft_config: the modules to adapt (see `ModuleMatcher`) and the options of the adapters.
    Returns:
        the number of patched modules.
    Raises:
        ValueError: naming a chosen module that cannot have an adapter, for example because it has one or its weight is
            not floating point; if the config's choices exclude each other; for experts with use_dora, or a rank that
            moe_rank_scaling cannot divide. After any error the model is unchanged.
    Warns:
        UserWarning: with the names tried if no module is chosen; naming a pattern that matches no linear module,
            with the nearest name that there is; naming a chosen subclass of Conv1D, which is left alone, and chosen
            modules with a packed weight that are no nn.Linear, such as HQQLinear; naming the experts that
            match_all_linear leaves without adapters.
    Source: NeMo Automodel `apply_lora_to_linear_modules`.
    """
    return adapt_model(model, peft_config, patch_linear_module)


def adapt_model(
    model: nn.Module, c: PeftConfig, patch: Callable[..., Any], kind: type[GroupedExpertsLoRA] = GroupedExpertsLoRA
) -> int:
    """Implement `apply_lora_to_linear_modules`.

    Args:
        patch: the `patch_linear_module` that adapts layers.   kind: the class of adapted experts.
    """
    chosen, experts = _chosen_layers(model, c), chosen_experts(model, c)
    warn_of_experts(model, c, 4)
    with undone_on_error([*chosen, *experts], model.parameters()):
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for module, name in chosen.items():
            patch(
                module,
                *c.of_layer(name),
                c.dropout,
                c.dropout_position,
                c.lora_A_init,
                c.lora_dtype,
                c.use_triton,
                use_dora=c.use_dora,
                use_rslora=c.use_rslora,
                use_memory_efficient_lora=c.use_memory_efficient_lora,
            )
        for module, options in experts.items():
            adapt_experts(
                module, options, c.lora_A_init, c.lora_dtype, c.dropout, c.dropout_position, c.use_rslora, kind
            )
        for layer in model.modules():
            if isinstance(layer, LinearLoRA | GroupedExpertsLoRA):  # also the layers of an earlier call
                layer.lora_A.requires_grad_(True)
                layer.lora_B.requires_grad_(True)
                if getattr(layer, "lora_magnitude", None) is not None:
                    layer.lora_magnitude.requires_grad_(True)  # type: ignore[union-attr]
    return len(chosen) + len(experts)


def _chosen_layers(model: nn.Module, c: PeftConfig) -> dict[nn.Module, str]:
    """The linear modules that a config chooses, each with its first name; target_parameters alone choose none.

    Raises:
        ValueError: naming one that cannot have an adapter.
    """
    if c.target_parameters and not (c.target_modules or c.exclude_modules or c.match_all_linear):
        return {}
    matcher = ModuleMatcher(c.target_modules, c.exclude_modules, c.match_all_linear, _is_causal_lm(model))
    names = _names_of_linear_modules(model)
    any_or_all = any if not (c.match_all_linear or c.exclude_modules) else all
    chosen = [m for m in names if any_or_all(matcher.match(m, name) for name in names[m])]
    left = [m for m in chosen if not isinstance(m, nn.Linear) and not is_conv1d(m)]
    chosen = [m for m in chosen if m not in left]
    for module in chosen:
        try:
            check_adaptable(module, c.use_dora, parse_dtype(c.lora_dtype))
        except ValueError as error:
            raise ValueError(f"{names[module][0]}: {error}") from None
    for module in left:
        kind = type(module).__name__
        warnings.warn(f"{names[module][0]} is left alone: {kind} is a subclass of Conv1D", stacklevel=4)
    _warn_of_packed(model, matcher)
    _warn_of_patterns(c, matcher, [name for all_names in names.values() for name in all_names], len(chosen))
    return {module: names[module][0] for module in chosen}


def _warn_of_patterns(c: PeftConfig, matcher: ModuleMatcher, names: list[str], count: int) -> None:
    """Warn if no module is chosen, and of a pattern, of several or of exclusions, that matches no linear module."""
    if not count:
        warnings.warn(f"no linear module is chosen by {c}; names tried: {', '.join(names)}", stacklevel=5)
    for key, patterns in (("target_modules", matcher.target_modules), ("exclude_modules", matcher.exclude_modules)):
        for pattern in patterns:
            if any(wildcard_match(pattern, name) for name in names) or (key == "target_modules" and not count):
                continue
            parts = {part: None for name in names for part in (name.rpartition(".")[2], name)}
            near = difflib.get_close_matches(pattern, parts, n=1)
            hint = f": did you mean {near[0]!r}?" if near else ""
            warnings.warn(f"{pattern!r} of {key} matches no linear module of the model{hint}", stacklevel=5)


def _warn_of_packed(model: nn.Module, matcher: ModuleMatcher) -> None:
    """Warn of chosen modules that hold the packed weight of a linear layer and are no nn.Linear."""
    found: dict[str, list[str]] = {}
    for name, module in model.named_modules():
        if is_packed_elsewhere(module) and matcher.chooses(name):
            found.setdefault(type(module).__name__, []).append(name)
    for kind, names in found.items():
        warnings.warn(
            f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} left without an adapter: {kind} holds a packed "
            f"weight and is no nn.Linear",
            stacklevel=5,
        )


def _names_of_linear_modules(model: nn.Module) -> dict[nn.Module, list[str]]:
    """Every linear module with all its names, in registration order, except the parts of adapters."""
    parts = {part for m in model.modules() if isinstance(m, LinearLoRA) for part in (m.lora_A, m.lora_B)}
    names: dict[nn.Module, list[str]] = {}
    linear: Any = LINEAR_LAYERS
    for name, module in named_modules(model):
        if isinstance(module, linear) and module not in parts:
            names.setdefault(module, []).append(name)
    return names


def _is_causal_lm(model: nn.Module) -> bool:
    architectures = getattr(getattr(model, "config", None), "architectures", None) or []
    return any("CausalLM" in name for name in [type(getattr(model, WRAPPED, model)).__name__, *architectures])
