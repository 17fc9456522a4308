"""Known-bad twins of unmatched patterns: a pattern without a layer is not named, or others are."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn

from tests.baselines.model import RightModel
from tests.known_bad import breaks
from tests.known_bad.model.spoiled_patch import MODEL


@breaks("MOD-UNMATCHED", says="no warning names it", source="a warning only if no module is chosen", **MODEL)
class WarnsOnlyOfNothing(RightModel):
    def warn_of_patterns(self, model: nn.Module, config: Any) -> None:
        pass


@breaks("MOD-UNMATCHED", says="exclude_modules=", source="only the targets are compared", **MODEL)
class SaysNothingOfExclusions(RightModel):
    def warn_of_patterns(self, model: nn.Module, config: Any) -> None:
        if config.target_modules:
            super().warn_of_patterns(model, config)


@breaks("MOD-UNMATCHED", says="matches layers, and a warning names it", **MODEL)
class NamesEveryPattern(RightModel):
    def warn_of_patterns(self, model: nn.Module, config: Any) -> None:
        for pattern in (*config.target_modules, *config.exclude_modules):
            warnings.warn(f"{pattern!r} may match no layer", stacklevel=4)
