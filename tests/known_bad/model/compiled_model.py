"""Known-bad twins of compiled models: patterns meet the names of torch.compile's wrapper."""

from __future__ import annotations

from tests.baselines.model import RightModel
from tests.known_bad import breaks


@breaks("MOD-COMPILED", says="has an adapter", source="huggingface/peft #2957: _orig_mod in the names of modules")
class MatchesTheNamesOfTheWrapper(RightModel):
    def plain(self, name: str) -> str:
        return name


@breaks("MOD-COMPILED", says="has an adapter", source="a prefix of the whole model removed, and not that of a part")
class MatchesTheNamesOfAWrappedPart(RightModel):
    def plain(self, name: str) -> str:
        return name.removeprefix("_orig_mod.")
