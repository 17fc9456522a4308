"""Known-bad twins of widths and sizes: a block fails on different widths, one missing adapter, or a large size."""

from __future__ import annotations

import copy

from tests.baselines.fused import Right
from tests.known_bad import breaks


@breaks("FUS-WIDTHS", says="raised RuntimeError", source="k and v split off in halves of one product")
class SplitsKeyAndValueInHalves(Right):
    def qkv(self, x, projections):
        q, k, v = super().qkv(x, projections)
        if k.shape != v.shape:
            raise RuntimeError("split_with_sizes expects split_sizes to sum exactly to the width")
        return q, k, v


@breaks("FUS-ADAPTERS-PAIR", says="worst", source="stacked adapters taken by the projection's place")
class TakesAStackedAdapterByItsPlace(Right):
    def project(self, x, p):
        return super().project(x, p)

    def qkv(self, x, projections):
        return super().qkv(x, self.mistaken(projections))

    def mlp(self, x, projections, activation):
        return super().mlp(x, self.mistaken(projections), activation)

    def mistaken(self, projections):
        """The second of two adapters without its B, as if there were a third before it."""
        having = [p for p in projections if p.A is not None]
        if len(having) != 2 or len(projections) != 3:
            return projections
        bare = copy.copy(having[1])
        bare.A = bare.B = None
        return [bare if p is having[1] else p for p in projections]


@breaks("FUS-SIZE-LONG", says="worst", source="a rank that one block must hold")
class LosesRanksBeyond128(Right):
    def update(self, x, p):
        return self.middle(x, p)[:, :128] @ p.B[:, :128].T * p.scale


@breaks("FUS-SIZE-LONG", says="worst", source="a grid capped at 128 columns")
class LosesColumnsOfUpBeyond128(Right):
    def d_up(self, d_h, gate, up, activation):
        found = super().d_up(d_h, gate, up, activation)
        found[:, 128:] = 0
        return found
