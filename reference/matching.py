"""The rules that choose, by dotted name, the modules that get an adapter."""

import re
import warnings
from dataclasses import dataclass, field

from torch import nn

from .hybrid import LINEAR_LAYERS

DEFAULT_TARGET = "*_proj"


def wildcard_match(pattern: str, key: str | None) -> bool:
    """Whether a pattern matches a dotted module name, or is equal to its last component.

    ``*`` matches any run of characters, dots included, and ``.`` matches a dot. A final ``.*`` also matches the
    empty string: ``*.b.*`` matches ``a.b`` and ``a.b.c``. A pattern that *begins* with ``.*`` has the legacy form,
    in which each ``.*`` matches any run: ``.*fc.*`` matches ``mlp.fc1``.

    Args:
        pattern: for example ``*.layers.0.*.q_proj``, ``*_proj`` or ``q_proj``.
        key: the full dotted name, for example ``model.layers.0.self_attn.q_proj``; no pattern matches None.
    Source: NeMo Automodel `module_matcher.wildcard_match`, where ``*.layers.1.*.q`` also matches
        ``layers.11``.
    """
    if key is None:
        return False
    return pattern == key.rpartition(".")[2] or re.fullmatch(_regex(pattern), key, re.DOTALL) is not None


def _regex(pattern: str) -> str:
    if pattern.startswith(".*"):
        return ".*".join(_literal_or_run(part) for part in pattern.split(".*"))
    if pattern.endswith(".*"):
        return _literal_or_run(pattern.removesuffix(".*")) + r"(\..*)?"
    return _literal_or_run(pattern)


def _literal_or_run(part: str) -> str:
    return ".*".join(re.escape(literal) for literal in part.split("*"))


@dataclass
class ModuleMatcher:
    """The rule that chooses the linear modules to adapt.

    Exactly one option applies: `target_modules` (the modules that a pattern matches), `exclude_modules` (the modules
    that no pattern matches) or `match_all_linear` (all). Without any option target_modules is ``["*_proj"]``, with a
    warning.

    Args:
        target_modules: patterns of `wildcard_match`; None is [], a string is one pattern.
        exclude_modules: likewise.
        match_all_linear: choose every nn.Linear, subclasses included, and every Conv1D of transformers.
        is_causal_lm: whether the model is a causal language model; match_all_linear then leaves out its output
            head ``lm_head``.
    Raises:
        ValueError: if two of the three are given (``... mutually exclusive ...``), or a list holds a
            non-string.
    Source: NeMo Automodel `ModuleMatcher`.
    """

    target_modules: list[str] = field(default_factory=list)
    exclude_modules: list[str] = field(default_factory=list)
    match_all_linear: bool = False
    is_causal_lm: bool = False

    def __post_init__(self) -> None:
        self.target_modules = pattern_list("target_modules", self.target_modules)
        self.exclude_modules = pattern_list("exclude_modules", self.exclude_modules)
        given = {
            "target_modules": self.target_modules,
            "exclude_modules": self.exclude_modules,
            "match_all_linear": self.match_all_linear,
        }
        given = {key: value for key, value in given.items() if value}
        if len(given) > 1:
            rules = " and ".join(f"{key} = {value!r}" for key, value in given.items())
            raise ValueError(f"{rules} are mutually exclusive: expected one of them")
        if not given:
            warnings.warn(
                f"no target_modules, exclude_modules or match_all_linear given: adapting {DEFAULT_TARGET!r}",
                stacklevel=3,
            )
            self.target_modules = [DEFAULT_TARGET]

    def match(self, m: nn.Module, name: str | None = None, prefix: str | None = None) -> bool:
        """Whether module m is to be adapted; False for a module that is not in `LINEAR_LAYERS`.

        Args:
            m: the module.
            name: its dotted name, relative to prefix if there is one.
            prefix: the dotted name of a parent module.
        """
        return isinstance(m, LINEAR_LAYERS) and self.chooses(
            f"{prefix}.{name}" if prefix and name is not None else name
        )

    def chooses(self, full_name: str | None) -> bool:
        """Whether the rule chooses a dotted name, whatever the module."""
        if self.match_all_linear:
            return not (self.is_causal_lm and full_name is not None and "lm_head" in full_name.split("."))
        if self.exclude_modules:
            return not any(wildcard_match(pattern, full_name) for pattern in self.exclude_modules)
        return any(wildcard_match(pattern, full_name) for pattern in self.target_modules)


def pattern_list(key: str, value: object) -> list[str]:
    """A new list of patterns: None gives [], and a string gives a list of one; other types are refused."""
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list | tuple) or not all(isinstance(pattern, str) for pattern in value):
        raise ValueError(f"{key} = {value!r}: expected a list of strings, a string or None")
    return list(value)
