"""Known-bad twins of target modules: a config chooses too many layers, or too few."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

import reference
from tests.baselines.model import RightMatcher, RightModel
from tests.known_bad import breaks
from tests.known_bad.model.registration import breaks_by_matcher
from tests.known_bad.model.spoiled_patch import MODEL


@breaks_by_matcher("MOD-EXCLUDES", "also chose")
class IgnoresFurtherExclusions(RightMatcher):
    def patterns(self, key: str, given: Any) -> list[str]:
        return super().patterns(key, given)[: 1 if key == "exclude_modules" else None]


@breaks_by_matcher("MOD-EXCLUDES", "did not choose", source="huggingface/diffusers #11874")
class ExcludesSubstrings(RightMatcher):
    def chooses(self, name: str | None) -> bool:
        return super().chooses(name) and not any(p.strip("*.")[:1] in str(name) for p in self.excludes)


@breaks_by_matcher("MOD-TARGETS", "did not choose")
class KnowsTheFirstTargetOnly(RightMatcher):
    def patterns(self, key: str, given: Any) -> list[str]:
        return super().patterns(key, given)[: 1 if key == "target_modules" else None]


class _Strings(RightModel):
    """A target whose config splits a string into characters."""

    def __init__(self) -> None:
        super().__init__()

        def plain(**options: Any) -> Any:
            given = {key: options.pop(key, None) for key in ("target_modules", "exclude_modules")}
            config = reference.PeftConfig(**options)
            for key, value in given.items():
                setattr(config, key, list(value or []))
            return config

        self.PeftConfig = plain


@breaks("MOD-STRING", says="_modules='", source="NVIDIA-NeMo/Automodel #77 (TM3)", **MODEL)
class IteratesOverCharacters(_Strings):
    pass


@breaks_by_matcher("MOD-ALL", "chose")
class KnowsNoSubclasses(RightMatcher):
    def is_linear(self, m: nn.Module) -> bool:
        return type(m) is nn.Linear or hasattr(m, "lora_A")


@breaks("MOD-ALL", says="raised TypeError", **MODEL)
class TakesNoNone(RightModel):
    def __init__(self) -> None:
        super().__init__()

        def strict(**options: Any) -> Any:
            if None in (options.get("target_modules", []), options.get("exclude_modules", [])):
                raise TypeError("'NoneType' object is not iterable")
            return reference.PeftConfig(**options)

        self.PeftConfig = strict


@breaks_by_matcher("MOD-NOTHING-GIVEN", "warned 'nothing'")
class FallsBackSilently(RightMatcher):
    def fall_back(self) -> None:
        self.targets = ["*_proj"]


@breaks_by_matcher("MOD-NOTHING-GIVEN", "a config of nothing chose []")
class ChoosesNothing(RightMatcher):
    def fall_back(self) -> None:
        warnings.warn("no targets given, not even *_proj", stacklevel=5)


@breaks_by_matcher("MOD-NOTHING-GIVEN", "a config of nothing chose")
class ChoosesAll(RightMatcher):
    def fall_back(self) -> None:
        warnings.warn("no targets given: adapting all, not *_proj", stacklevel=5)
        self.everything = True


@breaks("MOD-NO-MATCH", says="did not warn", **MODEL)
class SaysNothingOfNothing(RightModel):
    def warn_of_nothing(self, model: nn.Module) -> None:
        pass

    def warn_of_patterns(self, model: nn.Module, config: Any) -> None:
        pass


@breaks("MOD-NO-MATCH", says="warned without naming", **MODEL)
class NamesNothingItTried(RightModel):
    def warn_of_nothing(self, model: nn.Module) -> None:
        warnings.warn("no layer matches", stacklevel=4)


@breaks("MOD-NO-MATCH", says="raised ValueError", **MODEL)
class RefusesToFindNothing(RightModel):
    def warn_of_nothing(self, model: nn.Module) -> None:
        raise ValueError("no layer matches")


@breaks_by_matcher("MOD-LISTS-UNTOUCHED", "the second time")
class KeepsTheCallersList(RightMatcher):
    def patterns(self, key: str, given: Any) -> list[str]:
        return given if isinstance(given, list) else super().patterns(key, given)


@breaks_by_matcher("MOD-EXCLUDES", "raised ValueError")
class TakesEmbeddingsThatAreNotExcluded(RightMatcher):
    def is_linear(self, m: nn.Module) -> bool:
        return super().is_linear(m) or (bool(self.excludes) and isinstance(m, nn.Embedding))


@breaks_by_matcher("MOD-ALL", "raised ValueError")
class TakesPointwiseConvolutions(RightMatcher):
    def is_linear(self, m: nn.Module) -> bool:
        return super().is_linear(m) or (self.everything and isinstance(m, nn.Conv1d))
