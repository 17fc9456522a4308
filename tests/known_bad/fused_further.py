"""Known-bad twins of fused blocks: widths, pairs of adapters and outputs, sizes, kept operands, autocast."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from tests.baselines.fused import Right
from tests.known_bad import breaks

FUSED = ("fused",)


@breaks("FUS-WIDTHS", says="raised RuntimeError", groups=FUSED, source="k and v split off in halves of one product")
class SplitsKeyAndValueInHalves(Right):
    def qkv(self, x, projections):
        q, k, v = super().qkv(x, projections)
        if k.shape != v.shape:
            raise RuntimeError("split_with_sizes expects split_sizes to sum exactly to the width")
        return q, k, v


@breaks("FUS-ADAPTERS-PAIR", says="worst", groups=FUSED, source="stacked adapters taken by the projection's place")
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


@breaks("FUS-BWD-PAIR", says="worst", groups=FUSED, source="one branch for all gradients, another for one")
class KeepsOneGradientOfTwo(Right):
    def back_qkv(self, x, projections, gs):
        given = [i for i, g in enumerate(gs) if g is not None]
        if len(given) == 2:
            gs = [g * 0 if i == given[1] else g for i, g in enumerate(gs)]
        return super().back_qkv(x, projections, gs)


@breaks("FUS-MEM-REFILL", says="worst", groups=FUSED, source="adapters stacked once and kept by their address")
class KeepsStackedAdapters(Right):
    def reset(self):
        self.known = {}

    def project(self, x, p):
        if not hasattr(self, "known"):
            self.reset()
        if p.A is not None:
            key = (p.A.data_ptr(), p.A.shape, p.A.stride(), p.A.dtype, p.B.data_ptr())
            # what it was made from is held, so that no other gets the address
            p, kept = copy.copy(p), self.known.setdefault(key, (p.A, p.B, p.A.detach().clone()))
            p.A = kept[2]
        return super().project(x, p)


@breaks("FUS-MEM-REFILL", says="worst", groups=FUSED, source="weights packed once and kept by their address")
class KeepsPackedWeights(Right):
    def reset(self):
        self.known = {}

    def base(self, x, p):
        if not hasattr(self, "known"):
            self.reset()
        key = (p.weight.data_ptr(), p.weight.shape, p.weight.stride(), p.weight.dtype)
        return nn.functional.linear(x, self.known.setdefault(key, (p.weight, p.weight.detach().clone()))[1], p.bias)


@breaks("FUS-BWD-MICRO", says="2 micro-batches", groups=FUSED, source="one workspace for all calls, handed out")
class HandsOutItsWorkspace(Right):
    def reset(self):
        self.buffers: dict[object, Tensor] = {}

    def d_A(self, g, x, p):
        if not hasattr(self, "buffers"):
            self.reset()
        found = super().d_A(g, x, p)
        buffer = self.buffers.setdefault((p.name, found.shape, found.dtype), torch.empty_like(found))
        return buffer.copy_(found).view_as(buffer)


@breaks("FUS-SIZE-LONG", says="worst", groups=FUSED, source="a rank that one block must hold")
class LosesRanksBeyond128(Right):
    def update(self, x, p):
        return self.middle(x, p)[:, :128] @ p.B[:, :128].T * p.scale


@breaks("FUS-SIZE-LONG", says="worst", groups=FUSED, source="a grid capped at 128 columns")
class LosesColumnsOfUpBeyond128(Right):
    def d_up(self, d_h, gate, up, activation):
        found = super().d_up(d_h, gate, up, activation)
        found[:, 128:] = 0
        return found


@breaks("FUS-BWD-SUM", says="worst", groups=FUSED, source="the gradient of y.sum() read from its one element on")
class ReadsANumberAsAMatrix(Right):
    def d_B(self, g, x, p):
        if g.numel() > 1 and set(g.stride()) == {0}:
            g = g * torch.eye(*g.shape, dtype=g.dtype)
        return super().d_B(g, x, p)


@breaks("FUS-AMP-ENTRY", says="raised RuntimeError", groups=FUSED, dtypes=("float32",), source="x asked to be float32")
class WantsFloat32UnderAutocast(Right):
    def call(self, activation, x, named):
        if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float32:
            raise RuntimeError("expected a float32 input under autocast")
        return super().call(activation, x, named)


@breaks(
    "FUS-AMP-ENTRY", says="dtype", groups=FUSED, dtypes=("float32",), source="custom_fwd(cast_inputs=torch.bfloat16)"
)
class TakesAutocastForBfloat16(Right):
    def call(self, activation, x, named):
        if not torch.is_autocast_enabled(x.device.type):
            return super().call(activation, x, named)
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            return super().call(activation, x, named)
