"""Known-bad twins of modes: autocast is not followed, or a recomputed forward pass differs."""

from __future__ import annotations

import torch

from tests.baselines.experts import Right
from tests.known_bad import breaks
from tests.known_bad.experts.relations import Keeps


@breaks("EXP-AMP", says="dtype", dtypes=("float32",), source="grouped_mm does not follow autocast")
class IgnoresAutocast(Right):
    def call(self, *arguments):
        with torch.autocast("cpu", enabled=False):
            return super().call(*arguments)


@breaks("EXP-CKPT", says="raised", source="a workspace that is taken by one forward pass at a time")
class RefusesASecondForward(Keeps):
    def forward_rows(self, c):
        if self.kept.get(len(c.x)) == c.x.sum().item():
            raise RuntimeError("the workspace is in use")
        self.kept[len(c.x)] = c.x.sum().item()
        return super().forward_rows(c)

    def backward_rows(self, c, g):
        self.kept.clear()
        return super().backward_rows(c, g)


@breaks("EXP-COMPILE", says="worst", dtypes=("float32",), source="a Python value that tracing makes a constant")
class FreezesItsScaleWhenTraced(Right):
    def expand(self, S, p):
        traced = torch.compiler.is_compiling() or isinstance(S, torch._subclasses.FakeTensor)
        return super().expand(S, p) / (p.scale if traced else 1.0)
