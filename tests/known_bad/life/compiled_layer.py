"""Known-bad twins of compiled layers: constants that the graph has captured."""

from __future__ import annotations

from typing import Any

import torch

from tests.baselines.life import LivedLayer
from tests.known_bad.life.registration import twin


@twin("LIFE-LAYER-COMPILE", says="after scale", source="a scale taken as a constant of the graph", dtypes=("float32",))
class BakesTheScaleIntoTheGraph(LivedLayer):
    @torch.compiler.assume_constant_result
    def constant(self) -> float:
        return self.scale

    def operands(self) -> Any:
        *rest, _ = super().operands()
        return *rest, self.constant()
