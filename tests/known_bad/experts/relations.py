"""Known-bad twins of relations: something of an earlier call is kept, or experts are told apart wrongly."""

from __future__ import annotations

import torch

from tests.baselines.experts import Right
from tests.known_bad import breaks


class Keeps(Right):
    """A function that keeps something of its calls."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget every call."""
        self.kept: dict = {}


@breaks("EXP-REL-PERMUTE", says="of permuted rows", source="routing captured with the first call of a shape")
class KeepsTheRoutingOfAShape(Keeps):
    def routed(self, index, experts):
        return self.kept.setdefault((len(index), experts), super().routed(index, experts))


@breaks("EXP-REL-EXPERTS", says="of permuted experts", source="adapters packed once for each number of experts")
class KeepsThePackedAdapters(Keeps):
    def call(self, x, own, weight, bias, A, B, scale, drop):
        kept = self.kept.setdefault((A.shape, A.dtype), A.detach().clone())
        return super().call(x, own, weight, bias, kept + A - A.detach(), B, scale, drop)


@breaks("EXP-REL-SPLIT", says="of two calls", source="a gradient divided by the share of rows")
class WeighsGradientsByRows(Keeps):
    def backward_rows(self, c, g):
        dx, dA, dB = super().backward_rows(c, g)
        most = self.kept["rows"] = max(self.kept.get("rows", 0), len(c.x))
        return dx, dA * len(c.x) / most, dB * len(c.x) / most


@breaks("EXP-REL-SLICES", says="of the experts from", source="rows of other ranks' experts sent to the first own one")
class SendsAbsentRowsToTheFirst(Right):
    def routed(self, index, experts):
        return super().routed(torch.where(index == -1, 0, index), experts)


@breaks("EXP-REL-DUPLICATE", says="with a duplicated expert", source="experts told apart by their values")
class JoinsEqualExperts(Right):
    def backward_rows(self, c, g):
        dx, dA, dB = super().backward_rows(c, g)
        for e in range(1, len(c.A)):
            for first in range(e):
                if torch.equal(c.A[e], c.A[first]) and len(c.own[e]):
                    dA[first], dB[first] = dA[first] + dA[e], dB[first] + dB[e]
                    dA[e], dB[e] = 0, 0
        return dx, dA, dB
