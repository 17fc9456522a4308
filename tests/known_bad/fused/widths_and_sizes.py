"""Known-bad twins of widths and sizes: a block fails on different widths, on a missing adapter, or on a large size."""

from __future__ import annotations

import copy

from tests.baselines.fused import Right
from tests.known_bad import breaks


@breaks("FUS-WIDTHS", says="raised RuntimeError", source="a joint product split into halves for k and v")
class SplitsKeyAndValueInHalves(Right):
    def qkv(self, x, projections):
        q, k, v = super().qkv(x, projections)
        if k.shape != v.shape:
            raise RuntimeError("split_with_sizes expects split_sizes to sum exactly to the width")
        return q, k, v


@breaks("FUS-ADAPTERS-PAIR", says="worst", source="stacked adapters indexed by the projection's position")
class TakesAStackedAdapterByItsPlace(Right):
    def project(self, x, p):
        return super().project(x, p)

    def qkv(self, x, projections):
        return super().qkv(x, self.mistaken(projections))

    def mlp(self, x, projections, activation):
        return super().mlp(x, self.mistaken(projections), activation)

    def mistaken(self, projections):
        """Drop the second of two adapters, as if the stack held three."""
        having = [p for p in projections if p.A is not None]
        if len(having) != 2 or len(projections) != 3:
            return projections
        bare = copy.copy(having[1])
        bare.A = bare.B = None
        return [bare if p is having[1] else p for p in projections]


@breaks("FUS-SIZE-LONG", says="worst", source="a kernel whose only rank block must hold the rank")
class LosesRanksBeyond128(Right):
    def update(self, x, p):
        return self.middle(x, p)[:, :128] @ p.B[:, :128].T * p.scale


@breaks("FUS-SIZE-LONG", says="worst", source="a grid limited to 128 columns")
class LosesColumnsOfUpBeyond128(Right):
    def d_up(self, d_h, gate, up, activation):
        found = super().d_up(d_h, gate, up, activation)
        found[:, 128:] = 0
        return found
