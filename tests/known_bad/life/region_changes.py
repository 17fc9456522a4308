"""Known-bad twins of changes inside an autocast region."""

from __future__ import annotations

from typing import Any

import torch

from tests.baselines.life import LivedLayer
from tests.known_bad.life.registration import twin


@twin("LIFE-LAYER-REGION", says="y after", source="torch.autocast's cache of casts, which has lora_A alone")
class LetsAutocastKeepLoraA(LivedLayer):
    def operands(self) -> Any:
        W, bias, A, B, scale = super().operands()
        return W, bias, A, B.bfloat16() if torch.is_autocast_enabled("cpu") else B, scale


@twin("LIFE-LAYER-REGION", says="y after", source="a cast of lora_B made when a region is entered")
class CastsLoraBOnceInARegion(LivedLayer):
    def operands(self) -> Any:
        W, bias, A, B, scale = super().operands()
        if not torch.is_autocast_enabled("cpu"):
            self.kept = None
            return W, bias, A, B, scale
        if self.kept is None or torch.is_grad_enabled():
            self.kept = B.detach().bfloat16()
        fresh = B.bfloat16() if torch.is_grad_enabled() else self.kept
        return W, None if bias is None else bias.bfloat16(), A.bfloat16(), fresh, scale
