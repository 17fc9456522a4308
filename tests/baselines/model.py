"""A right target for the group model, split into small methods; a known-bad twin overrides one of them."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

import reference
from reference.base_layer import check_adaptable
from reference.matching import pattern_list
from reference.stored_weight import is_packed_elsewhere


class RightMatcher:
    """A right `ModuleMatcher`; it uses the `wildcard_match` of `target`."""

    target: Any

    def __init__(self, target_modules: Any = (), exclude_modules: Any = (), match_all_linear: bool = False,
                 is_causal_lm: bool = False) -> None:  # fmt: skip
        self.targets = self.patterns("target_modules", target_modules)
        self.excludes = self.patterns("exclude_modules", exclude_modules)
        self.everything, self.causal = match_all_linear, is_causal_lm
        self.check()

    def patterns(self, key: str, given: Any) -> list[str]:
        """Return the patterns as a new list."""
        return pattern_list(key, given)

    def check(self) -> None:
        """Refuse mutually exclusive rules; without any rule, fall back to `*_proj`."""
        if sum(map(bool, (self.targets, self.excludes, self.everything))) > 1:
            raise ValueError("target_modules, exclude_modules and match_all_linear are mutually exclusive")
        if not (self.targets or self.excludes or self.everything):
            self.fall_back()

    def fall_back(self) -> None:
        """Use `*_proj`, with a warning, when no rule is given."""
        warnings.warn("no targets given: adapting *_proj", stacklevel=5)
        self.targets = ["*_proj"]

    def match(self, m: nn.Module, name: str | None = None, prefix: str | None = None) -> bool:
        """Whether the matcher chooses a module."""
        return self.is_linear(m) and self.chooses(self.full_name(name, prefix))

    def is_linear(self, m: nn.Module) -> bool:
        """Whether a module may be chosen at all."""
        return isinstance(m, reference.LINEAR_LAYERS)

    def full_name(self, name: str | None, prefix: str | None) -> str | None:
        """The dotted name, including the prefix."""
        return f"{prefix}.{name}" if prefix and name else name

    def is_head(self, name: str | None) -> bool:
        """Whether a name belongs to the output layer of a causal language model."""
        return "lm_head" in (name or "").split(".")

    def chooses(self, name: str | None) -> bool:
        """Whether the rule chooses a name."""
        if self.everything:
            return not (self.causal and self.is_head(name))
        found = any(self.target.wildcard_match(p, name) for p in self.excludes or self.targets)
        return found != bool(self.excludes)


class RightModel:
    """A target that patches as the reference does and applies a config in small steps."""

    PeftConfig: Any = reference.PeftConfig
    LinearLoRA = reference.LinearLoRA
    TritonLinearLoRA = reference.TritonLinearLoRA
    LoraTraining: Any = reference.LoraTraining
    HybridFHEModel: Any = reference.HybridFHEModel
    Matcher: type[RightMatcher] = RightMatcher
    merge_adapters = staticmethod(reference.merge_adapters)
    unmerge_adapters = staticmethod(reference.unmerge_adapters)

    def __init__(self) -> None:
        self.ModuleMatcher: Any = type("ModuleMatcher", (self.Matcher,), {"target": self})

    def patch_linear_module(self, orig_linear: Any, *arguments: Any, **options: Any) -> Any:
        """Patch a layer as the reference does."""
        return reference.patch_linear_module(orig_linear, *arguments, **options)

    def wildcard_match(self, pattern: str, key: str | None) -> bool:
        """Match a name as the reference does."""
        return reference.wildcard_match(pattern, key)

    def apply_lora_to_linear_modules(self, model: nn.Module, peft_config: Any) -> Any:
        """Choose the modules, freeze the model, patch the modules and return their count."""
        chosen = self.chosen(model, peft_config)
        for module in chosen:
            if hasattr(module, "lora_A"):
                self.meets_adapted(module)
            else:
                self.check_named(model, module, peft_config)
        self.warn_of_packed(model, peft_config)
        if not chosen:
            self.warn_of_nothing(model)
        self.warn_of_patterns(model, peft_config)
        self.freeze(model, chosen)
        for module in chosen:
            self.patch(module, peft_config)
        self.unfreeze(model)
        return self.count(chosen)

    def chosen(self, model: nn.Module, config: Any) -> list[nn.Module]:
        """Return the modules to patch, in registration order."""
        causal = "CausalLM" in type(model).__name__
        matcher = self.ModuleMatcher(config.target_modules, config.exclude_modules, config.match_all_linear, causal)
        found = [m for name, m in self.named(model) if self.may_patch(name) and matcher.match(m, name)]
        return list(dict.fromkeys(found))

    def named(self, model: nn.Module) -> list[tuple[str, nn.Module]]:
        """Return all modules under all their names."""
        return [(self.plain(name), module) for name, module in model.named_modules(remove_duplicate=False)]

    def plain(self, name: str) -> str:
        """Return a name without the parts that torch.compile adds."""
        return name.replace("_orig_mod.", "").removesuffix("_orig_mod")

    def may_patch(self, name: str) -> bool:
        """Whether the name lies outside adapters."""
        return not {"lora_A", "lora_B"} & set(name.split("."))

    def meets_adapted(self, module: nn.Module) -> None:
        """Refuse a chosen module that already has an adapter."""
        raise ValueError(f"a chosen {type(module).__name__} already has an adapter")

    def warn_of_nothing(self, model: nn.Module) -> None:
        """Warn that no module was chosen, and list the candidates."""
        names = [name for name, m in model.named_modules() if isinstance(m, nn.Linear)]
        warnings.warn(f"no layer matches; tried {', '.join(names)}", stacklevel=4)

    def check(self, module: nn.Module, config: Any) -> None:
        """Refuse a chosen module that cannot have an adapter."""
        check_adaptable(module, config.use_dora, config.lora_dtype)

    def check_named(self, model: nn.Module, module: nn.Module, config: Any) -> None:
        """Refuse a chosen module that cannot have an adapter, by its path."""
        try:
            self.check(module, config)
        except ValueError as error:
            raise ValueError(f"{next(name for name, m in self.named(model) if m is module)}: {error}") from None

    def warn_of_packed(self, model: nn.Module, config: Any) -> None:
        """Warn of each packed linear layer that is no nn.Linear."""
        for name, module in model.named_modules():
            if is_packed_elsewhere(module):
                warnings.warn(f"{name} is packed and gets no adapter", stacklevel=4)

    def warn_of_patterns(self, model: nn.Module, config: Any) -> None:
        """Warn of each pattern that matches no candidate."""
        names = [name for name, m in self.named(model) if isinstance(m, reference.LINEAR_LAYERS)]
        for pattern in (*pattern_list("", config.target_modules), *pattern_list("", config.exclude_modules)):
            if not any(self.wildcard_match(pattern, name) for name in names):
                warnings.warn(f"{pattern!r} matches no layer", stacklevel=4)

    def freeze(self, model: nn.Module, chosen: list[nn.Module]) -> None:
        """Freeze every parameter before adapters are added."""
        model.requires_grad_(False)

    def patch(self, module: nn.Module, config: Any) -> None:
        """Patch one module with the config's options."""
        self.patch_linear_module(module, **self.options(config))

    def options(self, c: Any) -> dict[str, Any]:
        """Return the config as arguments of `patch_linear_module`."""
        return {
            "dim": c.dim,
            "alpha": c.alpha,
            "dropout": c.dropout,
            "dropout_position": c.dropout_position,
            "lora_A_init_method": c.lora_A_init,
            "lora_dtype": c.lora_dtype,
            "use_triton": c.use_triton,
            "use_dora": c.use_dora,
            "use_rslora": c.use_rslora,
        }

    def unfreeze(self, model: nn.Module) -> None:
        """Make every adapter trainable."""
        for name, parameter in model.named_parameters():
            if self.trains(name):
                parameter.requires_grad_(True)

    def trains(self, name: str) -> bool:
        """Whether a parameter belongs to an adapter and is trained."""
        return name.endswith(("lora_A.weight", "lora_B.weight", "lora_magnitude"))

    def count(self, chosen: list[nn.Module]) -> Any:
        """Return the number of patched modules."""
        return len(chosen)
