"""Known-bad twins of sizes and aliasing: a call fails on a large size, on shared memory, or on a NaN."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tests.baselines.linear import BackwardOperands, Right, UpdateOperands
from tests.known_bad import breaks


@breaks("LIN-SIZE-LONG", "LAY-SIZE-LONG", says="worst", source="a kernel whose only rank block must hold the rank")
class LosesRanksBeyond128(Right):
    def update(self, o: UpdateOperands) -> Tensor:
        return super().update(replace(o, lora_A=o.lora_A[:128], lora_B=o.lora_B[:, :128]))


@breaks(
    "LIN-SIZE-LONG",
    "LAY-SIZE-LONG",
    says="worst",
    source="split K above 2048 features, with its last part skipped",
)
class LosesTheTailWhereItSplitsK(Right):
    def update(self, o: UpdateOperands) -> Tensor:
        whole = o.x.shape[1] // 256 * 256 if o.x.shape[1] > 2048 else o.x.shape[1]
        return super().update(replace(o, x=o.x[:, :whole], lora_A=o.lora_A[:, :whole]))


@breaks("LIN-SIZE-LONG", "LAY-SIZE-LONG", says="worst    dA", source="a grid limited to 1024 rows")
class SumsTheFirst1024Tokens(Right):
    def gradient_of_lora_A(self, o: BackwardOperands) -> Tensor:
        return super().gradient_of_lora_A(replace(o, g_adapter=o.g_adapter[:1024], x=o.x[:1024]))


@breaks(
    "LIN-LAYOUT-SHARED",
    "LAY-LAYOUT-SHARED",
    says="worst    dB",
    source="the expanded gradient of y.sum() read as a contiguous matrix",
)
class ReadsANumberAsAMatrix(Right):
    def gradient_of_lora_B(self, o: BackwardOperands) -> Tensor:
        g = o.g_adapter
        if g.numel() > 1 and set(g.stride()) == {0}:
            first = torch.zeros(g.shape, dtype=g.dtype)
            first[0, 0] = g[0, 0]
            g = first
        return super().gradient_of_lora_B(replace(o, g_adapter=g))


@breaks("LIN-LAYOUT-SHARED", "LAY-LAYOUT-SHARED", says="worst    y", source="stride(0) == 1 taken for a transpose")
class TakesWindowsForColumns(Right):
    def lora_linear(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        if x.dim() == 2 and x.stride() == (1, 1) and min(x.shape) > 1:
            x = x[:1].expand(x.shape)
        return super().lora_linear(x, *args, **options)


@breaks("LIN-LAYOUT-SHARED", "LAY-LAYOUT-SHARED", says="worst    y", source="a last stride of 0 treated as 1")
class TakesOneNumberForARow(Right):
    def lora_linear(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        if x.dim() == 2 and x.stride(1) == 0 and x.shape[1] > 1:
            x = x * torch.eye(1, x.shape[1], dtype=x.dtype)
        return super().lora_linear(x, *args, **options)


@breaks(
    "LIN-BWD-NONFINITE",
    "LAY-BWD-NONFINITE",
    says="finite elements although",
    dtypes=("float32",),
    source="nan_to_num, which hides an overflow",
)
class HidesWhatIsNoNumber(Right):
    def gradient_of_lora_A(self, o: BackwardOperands) -> Tensor:
        return super().gradient_of_lora_A(replace(o, g_adapter=o.g_adapter.nan_to_num()))


@breaks(
    "LIN-BWD-NONFINITE",
    "LAY-BWD-NONFINITE",
    says="worst",
    dtypes=("float32",),
    source="a tail masked by multiplying with zero",
)
class SpreadsWhatIsNoNumber(Right):
    def back_through_update(self, o: BackwardOperands) -> Tensor:
        return super().back_through_update(o) + 0 * o.g_adapter.sum()
