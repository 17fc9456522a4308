"""Known-bad twins of gradient sums: the gradients of several outputs or batches overwrite each other."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.baselines.fused import Right
from tests.known_bad import breaks


@breaks("FUS-BWD-PAIR", says="worst", source="branches for one gradient and for all, none for two")
class KeepsOneGradientOfTwo(Right):
    def back_qkv(self, x, projections, gs):
        given = [i for i, g in enumerate(gs) if g is not None]
        if len(given) == 2:
            gs = [g * 0 if i == given[1] else g for i, g in enumerate(gs)]
        return super().back_qkv(x, projections, gs)


@breaks("FUS-BWD-MICRO", says="2 micro-batches", source="a workspace shared by all calls and returned to the caller")
class HandsOutItsWorkspace(Right):
    def reset(self):
        self.buffers: dict[object, Tensor] = {}

    def d_A(self, g, x, p):
        if not hasattr(self, "buffers"):
            self.reset()
        found = super().d_A(g, x, p)
        buffer = self.buffers.setdefault((p.name, found.shape, found.dtype), torch.empty_like(found))
        return buffer.copy_(found).view_as(buffer)


@breaks("FUS-BWD-SUM", says="worst", source="the expanded gradient of y.sum() read as a contiguous matrix")
class ReadsANumberAsAMatrix(Right):
    def d_B(self, g, x, p):
        if g.numel() > 1 and set(g.stride()) == {0}:
            g = g * torch.eye(*g.shape, dtype=g.dtype)
        return super().d_B(g, x, p)
