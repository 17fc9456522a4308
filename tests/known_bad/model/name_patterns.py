"""Known-bad twins of name patterns: `wildcard_match` matches too many names, or too few."""

from __future__ import annotations

import fnmatch
import re
from typing import Any

from torch import nn

import reference
from tests.baselines.model import RightMatcher, RightModel
from tests.known_bad import breaks
from tests.known_bad.model.registration import breaks_by_matcher
from tests.known_bad.model.spoiled_patch import MODEL

NEMO = "NVIDIA-NeMo/Automodel 36044ad3d module_matcher (TM1)"


@breaks_by_matcher("MOD-MATCHER", "expected True")
class IgnoresThePrefix(RightMatcher):
    def full_name(self, name: str | None, prefix: str | None) -> str | None:
        return name


@breaks_by_matcher("MOD-MATCHER", "it is not linear")
@breaks_by_matcher("MOD-LINEAR-ONLY", "raised ValueError")
class TakesAnyModule(RightMatcher):
    def is_linear(self, m: nn.Module) -> bool:
        return True


@breaks_by_matcher("MOD-MATCHER-EXCLUDE", "expected")
class ReadsAnExcludedStringByCharacter(RightMatcher):
    def patterns(self, key: str, given: Any) -> list[str]:
        return super().patterns(key, list(given) if key == "exclude_modules" else given)


@breaks_by_matcher("MOD-MATCHER-EXCLUDE", "expected False")
class ExcludesTheFirstNameAlone(RightMatcher):
    seen: str | None = None

    def chooses(self, name: str | None) -> bool:
        self.seen = self.seen or name
        return super().chooses(name) or (bool(self.excludes) and name != self.seen)


@breaks_by_matcher("MOD-MATCHER-HEAD", "expected True")
class KeepsEverythingOfACausalModel(RightMatcher):
    def is_head(self, name: str | None) -> bool:
        return True


@breaks_by_matcher("MOD-MATCHER-HEAD", "expected True", "zama-ai/concrete-ml get_remote_names (HY1)")
class LooksForTheHeadBySubstring(RightMatcher):
    def is_head(self, name: str | None) -> bool:
        return "m_head" in (name or "")


@breaks_by_matcher("MOD-MATCHER-HEAD", "expected True")
class KeepsTheHeadOfEveryModel(RightMatcher):
    def chooses(self, name: str | None) -> bool:
        return super().chooses(name) and not (self.everything and self.is_head(name))


@breaks_by_matcher("MOD-MATCHER-HEAD", "expected True")
class KeepsTheHeadFromExclusionsToo(RightMatcher):
    def chooses(self, name: str | None) -> bool:
        return super().chooses(name) and not (self.excludes and self.causal and self.is_head(name))


@breaks_by_matcher("MOD-MATCHER-HEAD", "expected True")
class KeepsTheHeadThatIsNamed(RightMatcher):
    def chooses(self, name: str | None) -> bool:
        return super().chooses(name) and not (self.targets and self.causal and self.is_head(name))


@breaks_by_matcher("MOD-MATCHER-HEAD", "expected True")
class TakesTheBeginningOfTheHead(RightMatcher):
    def is_head(self, name: str | None) -> bool:
        return any(part.startswith("lm_head") for part in (name or "").split("."))


@breaks_by_matcher("MOD-MATCHER-HEAD", "expected False")
class LooksForTheHeadWithoutThePrefix(RightMatcher):
    def full_name(self, name: str | None, prefix: str | None) -> str | None:
        return name if self.everything else super().full_name(name, prefix)


@breaks_by_matcher("MOD-MATCHER-EXCLUDE", "expected")
class ExcludesWithoutThePrefix(RightMatcher):
    def full_name(self, name: str | None, prefix: str | None) -> str | None:
        return name if self.excludes else super().full_name(name, prefix)


class Matches(RightModel):
    """A model whose `wildcard_match` is `match(pattern, key)`, also in its matcher and in whole models."""

    def wildcard_match(self, pattern: str, key: str | None) -> bool:
        return False if key is None else self.match(pattern, key)

    def match(self, pattern: str, key: str) -> bool:
        return reference.wildcard_match(pattern, key)


@breaks("MOD-PATTERN-LITERAL", says="expected False", source=NEMO, **MODEL)
@breaks("MOD-PATTERN-TABLE", says="returned True: expected False", source=NEMO, **MODEL)
@breaks("MOD-TARGETS", says="also chose", source=NEMO, **MODEL)
class LeavesTheDotSpecial(Matches):
    def match(self, pattern: str, key: str) -> bool:
        opened = re.escape(pattern).replace(r"\*", "(.*)").replace(r"\.", ".")
        return super().match(pattern, key) or re.match(f"^{opened}$", key) is not None


@breaks("MOD-PATTERN-LITERAL", says="wildcard_match", source="a pattern passed to re unescaped", **MODEL)
class IsARegularExpression(Matches):
    def match(self, pattern: str, key: str) -> bool:
        return (
            super().match(pattern, key) or re.fullmatch(pattern.replace(".", r"\.").replace("*", ".*"), key) is not None
        )


@breaks("MOD-PATTERN-LITERAL", says="expected", **MODEL)
class IsAShellPattern(Matches):
    def match(self, pattern: str, key: str) -> bool:
        return super().match(pattern, key) or fnmatch.fnmatchcase(key, pattern)


@breaks(
    "MOD-PATTERN-LEGACY",
    says="returned False: expected True",
    source="NVIDIA-NeMo/Automodel #1561 (TM2)",
    **MODEL,
)
@breaks(
    "MOD-PATTERN-TABLE",
    says="returned False: expected True",
    source="NVIDIA-NeMo/Automodel #1561 (TM2)",
    **MODEL,
)
class EscapesTheLegacyDot(Matches):
    def match(self, pattern: str, key: str) -> bool:
        return super().match(f"*{pattern[1:]}" if pattern.startswith(".*") else pattern, f"{key}") and (
            not pattern.startswith(".*") or key.startswith(".")
        )


@breaks("MOD-PATTERN-NAME", says="expected False", **MODEL)
class MatchesAnyComponent(Matches):
    def match(self, pattern: str, key: str) -> bool:
        return super().match(pattern, key) or pattern in key.split(".")


@breaks(
    "MOD-PATTERN-NAME",
    says="expected False",
    source="endswith on names: q_proj matches bq_proj (TM1)",
    **MODEL,
)
class MatchesTheEnding(Matches):
    def match(self, pattern: str, key: str) -> bool:
        return super().match(pattern, key) or key.endswith(pattern)


@breaks("MOD-PATTERN-NAME", says="expected False", **MODEL)
class IgnoresCase(Matches):
    def match(self, pattern: str, key: str) -> bool:
        return super().match(pattern.lower(), key.lower())


@breaks("MOD-PATTERN-RUN", says="expected True", **MODEL)
class StopsAtDots(Matches):
    def match(self, pattern: str, key: str) -> bool:
        if pattern.startswith(".*") or pattern.endswith(".*") or "*" not in pattern:
            return super().match(pattern, key)
        return re.fullmatch("[^.]*".join(map(re.escape, pattern.split("*"))), key) is not None


@breaks("MOD-PATTERN-RUN", says="expected True", **MODEL)
class WantsSomethingForTheStar(Matches):
    def match(self, pattern: str, key: str) -> bool:
        if pattern.startswith(".*") or pattern.endswith(".*") or "*" not in pattern:
            return super().match(pattern, key)
        return re.fullmatch(".+".join(map(re.escape, pattern.split("*"))), key) is not None


@breaks("MOD-PATTERN-RUN", says="expected False", **MODEL)
class MatchesTheBeginning(Matches):
    def match(self, pattern: str, key: str) -> bool:
        return super().match(pattern, key) or ("*" in pattern and super().match(pattern + "*", key))


@breaks("MOD-PATTERN-RUN", says="expected False", source="re.search in place of re.fullmatch", **MODEL)
class MatchesAnywhere(Matches):
    def match(self, pattern: str, key: str) -> bool:
        return super().match(pattern, key) or ("*" in pattern and super().match(f"*{pattern}", key))


@breaks("MOD-PATTERN-TAIL", says="expected True", **MODEL)
class WantsSomethingForTheTail(Matches):
    def match(self, pattern: str, key: str) -> bool:
        if pattern.startswith(".*") or not pattern.endswith(".*"):
            return super().match(pattern, key)
        return super().match(f"{pattern}*", key)  # with `.**` at the end, `.*` is no longer the tail


@breaks("MOD-PATTERN-TAIL", says="expected False", **MODEL)
class TakesTheTailForAnyRun(Matches):
    def match(self, pattern: str, key: str) -> bool:
        legacy = pattern.startswith(".*") or not pattern.endswith(".*")
        return super().match(pattern if legacy else f"{pattern[:-2]}*", key)


@breaks("MOD-PATTERN-NONE", says="raised TypeError", **MODEL)
class FailsOnNone(RightModel):
    def wildcard_match(self, pattern: str, key: str | None) -> bool:
        return re.fullmatch(".*", key) is not None and super().wildcard_match(pattern, key)  # type: ignore[arg-type]


@breaks("MOD-PATTERN-NONE", says="expected False", **MODEL)
class TakesNoneForAName(RightModel):
    def wildcard_match(self, pattern: str, key: str | None) -> bool:
        return super().wildcard_match(pattern, str(key))


@breaks("MOD-PATTERN-TABLE", says="wildcard_match('*.layers.1.*.q', 'm.layers.11.attn.q') returned True", **MODEL)
class LeavesDigitsOpen(Matches):
    def match(self, pattern: str, key: str) -> bool:
        return super().match(pattern, key) or super().match(pattern.replace("1.", "1*."), key)


def _regex(pattern: str, star: str) -> str:
    return star.join(map(re.escape, pattern.split("*")))


@breaks("MOD-PATTERN-RUN", says="expected True", source="a star translated to `[\\w.]*`", **MODEL)
class KnowsLettersAndDigitsOnly(Matches):
    def match(self, pattern: str, key: str) -> bool:
        if pattern.startswith(".*") or pattern.endswith(".*") or "*" not in pattern:
            return super().match(pattern, key)
        return re.fullmatch(_regex(pattern, r"[\w.]*"), key) is not None


@breaks("MOD-PATTERN-LITERAL", says="expected False", **MODEL)
class StripsPatterns(Matches):
    def match(self, pattern: str, key: str) -> bool:
        return super().match(pattern.rstrip(), key)
