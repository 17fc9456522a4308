"""Right targets for the group model, each with another convention than the reference."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

import reference
from reference.matching import pattern_list
from tests.baselines.model import RightMatcher, RightModel


class ByWildcards(RightModel):
    """A pattern spans the full name; it never means the last component alone."""

    def wildcard_match(self, pattern: str, key: str | None) -> bool:
        """Match the full name."""
        return key is not None and ("*" in pattern or pattern == key) and super().wildcard_match(pattern, key)


class ByLooseWildcards(ByWildcards):
    """The same, where an inner `.*` also matches nothing."""

    def wildcard_match(self, pattern: str, key: str | None) -> bool:
        """Match the full name, with each `.*` after a whole part as children or nothing."""
        if key is None or ".*" not in pattern or pattern.startswith(".*"):
            return super().wildcard_match(pattern, key)
        parts = [".*".join(map(re.escape, part.split("*"))) for part in pattern.split(".*")]
        return re.fullmatch(r"(\..*)?".join(parts), key) is not None


class BySuffix(RightModel):
    """A pattern is the full name or its end from a dot on, as in a list of PEFT's."""

    def wildcard_match(self, pattern: str, key: str | None) -> bool:
        """Match the end of the name."""
        return key is not None and f".{key}".endswith(f".{pattern}")


class ByComponent(RightModel):
    """A pattern is the last component of the name."""

    def wildcard_match(self, pattern: str, key: str | None) -> bool:
        """Match the last component."""
        return key is not None and key.split(".")[-1] == pattern


class ByRegex(RightModel):
    """A pattern is a regular expression of the full name."""

    def wildcard_match(self, pattern: str, key: str | None) -> bool:
        """Match the full name; a pattern that is no regular expression matches nothing."""
        try:
            return key is not None and re.fullmatch(pattern, key) is not None
        except re.error:
            return False


class LikePeft(BySuffix):
    """PEFT's rules: suffixes in a list, a string as a regex, exclusions beside targets, errors if nothing matches."""

    def __init__(self) -> None:
        super().__init__()

        def config(target_modules: Any = (), exclude_modules: Any = (), **options: Any) -> Any:
            made = reference.PeftConfig(**options)
            made.target_modules, made.exclude_modules = target_modules, exclude_modules
            return made

        self.PeftConfig = config

    class Matcher(RightMatcher):
        def patterns(self, key: str, given: Any) -> list[str]:
            if isinstance(given, str):
                return [f"re:{given}"]
            return pattern_list(key, given)

        def check(self) -> None:
            if not (self.targets or self.excludes or self.everything):
                raise ValueError("no target_modules given")

        def chooses(self, name: str | None) -> bool:
            found = self.everything or any(self.matched(pattern, name) for pattern in self.targets)
            found = found or not self.targets
            return found and not any(self.matched(pattern, name) for pattern in self.excludes)

        def matched(self, pattern: str, name: str | None) -> bool:
            if pattern.startswith("re:"):
                return name is not None and re.fullmatch(pattern[3:], name) is not None
            return bool(self.target.wildcard_match(pattern, name))

    def chosen(self, model: nn.Module, config: Any) -> list[nn.Module]:
        """Refuse a config that chooses nothing, by the name of its patterns."""
        found = super().chosen(model, config)
        if not found:
            raise ValueError(f"no module matches {config.target_modules}")
        return found


class AdaptsEveryHead(RightModel):
    """match_all_linear chooses the output head of a causal model too."""

    class Matcher(RightMatcher):
        def is_head(self, name: str | None) -> bool:
            return False


class SaysNothing(RightModel):
    """The count alone says that no layer is chosen, and a module has one name: its first."""

    CONFORMANCE = {  # noqa: RUF012
        "features": {"no_match": "count alone", "shared_names": "first name", "argument_checks": "when used"}
    }

    def warn_of_nothing(self, model: nn.Module) -> None:
        """Say nothing."""

    def named(self, model: nn.Module) -> list[tuple[str, nn.Module]]:
        """Return all modules under their first names."""
        return list(model.named_modules())

    def patch_linear_module(self, orig_linear: Any, *arguments: Any, **options: Any) -> Any:
        """Patch a layer, and check its rate of dropout in its first step."""
        rate = options.get("dropout", 0.0)
        if 0 <= rate <= 1:
            return super().patch_linear_module(orig_linear, *arguments, **options)
        layer = super().patch_linear_module(orig_linear, *arguments, **{**options, "dropout": 0.0})

        def check(layer: nn.Module, _: Any) -> None:
            if layer.training:
                raise ValueError(f"dropout probability {rate}")

        layer.register_forward_pre_hook(check)
        return layer


class TakesOneConfig(RightModel):
    """A call freezes the adapters of an earlier one."""

    CONFORMANCE = {"features": {"second_config": "absent"}}  # noqa: RUF012

    def freeze(self, model: nn.Module, chosen: list[nn.Module]) -> None:
        """Freeze every parameter, and remember it."""
        super().freeze(model, chosen)
        self.frozen = set(model.parameters())

    def unfreeze(self, model: nn.Module) -> None:
        """Make every new adapter trainable."""
        for parameter in set(model.parameters()) - self.frozen:
            parameter.requires_grad_(True)


class HasNoExclusions(RightModel):
    """A target whose config knows targets and match_all_linear only."""

    def __init__(self) -> None:
        super().__init__()

        def config(target_modules: Any = (), match_all_linear: bool = False, **options: Any) -> Any:
            if "exclude_modules" in options:
                raise TypeError("config() got an unexpected keyword argument 'exclude_modules'")
            targets = [target_modules] if isinstance(target_modules, str) else list(target_modules or [])
            return reference.PeftConfig(target_modules=targets, match_all_linear=match_all_linear, **options)

        self.PeftConfig = config
