"""Known-bad twins of forward: rows get another expert's operands, or a shape, layout, dtype or absent row is wrong."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from tests.baselines.experts import Right
from tests.known_bad import breaks


@breaks("EXP-FWD", says="worst    y", source="unslothai/unsloth-zoo #1269")
class UnpacksBExpertSlowest(Right):
    """B as [N, r·E] with the expert fastest, read as if the expert were slowest."""

    def call(self, x, own, weight, bias, A, B, scale, drop):
        experts, n, r = B.shape
        packed = B.permute(1, 2, 0).reshape(n, r * experts)
        return super().call(x, own, weight, bias, A, packed.reshape(n, experts, r).permute(1, 0, 2), scale, drop)


@breaks("EXP-FWD", says="worst    y", source="an expert's capacity, beyond which rows are dropped")
class DropsRowsBeyondACapacity(Right):
    def forward_rows(self, c):
        most = max(1, len(c.x) // len(c.own))
        c.own = [own[:most] for own in c.own]
        return super().forward_rows(c)


@breaks("EXP-FWD", says="worst    y", source="an adapter that is shared by all experts")
class UsesTheAdapterOfTheFirstExpert(Right):
    def expert(self, c, e):
        p = super().expert(c, e)
        p.A, p.B = c.A[0], c.B[0]
        return p


@breaks("EXP-FWD", says="bias term", source="one bias for all experts")
class UsesTheBiasOfTheFirstExpert(Right):
    def expert(self, c, e):
        p = super().expert(c, e)
        p.bias = None if c.bias is None else c.bias[0]
        return p


@breaks("EXP-FWD", says="adapter term is", source="vllm-project/vllm #55545: rsLoRA ignored for experts")
class DividesTheScaleByTheRoot(Right):
    def expand(self, S, p):
        return super().expand(S, p) / p.B.shape[1] ** 0.5


@breaks("EXP-FWD", says="worst    y", dtypes=("float64",), source="Triton: a float is 32 bits")
class RoundsTheScaleTo32Bits(Right):
    def call(self, x, own, weight, bias, A, B, scale, drop):
        return super().call(x, own, weight, bias, A, B, torch.tensor(scale).item(), drop)


@breaks("EXP-LEAD", says="raised", source="a kernel that takes matrices only")
class NeedsAMatrix(Right):
    def refuse_index(self, x, index):
        super().refuse_index(x, index)
        if x.dim() != 2:
            raise RuntimeError("expected a matrix")


@breaks("EXP-LEAD", says="raised", source="pytorch: the backward pass of grouped_mm raises without rows")
class FailsWithoutRows(Right):
    def backward_rows(self, c, g):
        if not len(c.x):
            raise RuntimeError("expected rows")
        return super().backward_rows(c, g)


@breaks("EXP-LAYOUT", says="worst", source="a weight stored [E, K, N] walked as if packed")
class WalksTheWeightAsIfPacked(Right):
    def call(self, x, own, weight, bias, A, B, scale, drop):
        if weight is not None and not weight.is_contiguous():
            weight = weight.as_strided(weight.shape, torch.empty(weight.shape).stride(), weight.storage_offset())
        return super().call(x, own, weight, bias, A, B, scale, drop)


@breaks("EXP-LAYOUT", says="worst    d", source="Dao-AILab/flash-attention #355 (ST3)")
class WalksGAsIfPacked(Right):
    def backward_rows(self, c, g):
        if not g.is_contiguous() and 0 not in g.stride():
            g = g.as_strided(g.shape, torch.empty(g.shape).stride(), g.storage_offset())
        return super().backward_rows(c, g)


@breaks("EXP-MIXED", says="dtype")
class ReturnsTheAdapterDtype(Right):
    def call(self, x, own, weight, bias, A, B, scale, drop):
        return super().call(x, own, weight, bias, A, B, scale, drop).to(A.dtype)


@breaks("EXP-MIXED", says="raised RuntimeError", source="grouped_mm takes no mixed dtypes")
class CannotMixDtypes(Right):
    def middle(self, x, p):
        if x.dtype != p.A.dtype:
            raise RuntimeError("expected the same dtype")
        return super().middle(x, p)


@breaks("EXP-ABSENT", says="y holds", source="sgl-project/sglang #24171: index -1 wraps to the last expert")
class WrapsTheIndex(Right):
    def routed(self, index, experts):
        return super().routed(torch.where(index < 0, index + experts, index), experts)


@breaks("EXP-ABSENT", says="y holds", source="an index that is clamped into the range of experts")
class ClampsTheIndex(Right):
    def routed(self, index, experts):
        return super().routed(index.clamp(max=experts - 1), experts)


class ComputesEveryRow(Right):
    """A function that computes absent rows too, before it masks them."""

    def forward_rows(self, c):
        y = super().forward_rows(c)
        seen = torch.zeros(len(c.x), 1, dtype=c.x.dtype)
        for own in c.own:
            seen[own] = 1
        return self.with_tail(y, c, seen)

    def with_tail(self, y, c, seen):
        """The output with what the absent rows hold."""
        raise NotImplementedError


@breaks("EXP-ABSENT", says="y holds", source="pytorch/pytorch #193633: rows beyond the last offset times zero")
class MultipliesTheTailByZero(ComputesEveryRow):
    def with_tail(self, y, c, seen):
        return y + (1 - seen) * c.x.sum(1, keepdim=True) * 0


@breaks("EXP-ABSENT", says="y holds", source="pytorch/pytorch #193633: grouped_mm leaves the tail unwritten")
class LeavesTheTailUnwritten(Right):
    def blank(self, rows, width, like):
        return like.new_empty(rows, width)


@breaks("EXP-ABSENT", says="y holds", source="a bias added to all rows by the clamped index")
class AddsABiasToAbsentRows(ComputesEveryRow):
    def with_tail(self, y, c, seen):
        return y if c.bias is None else torch.where(seen == 0, c.bias[-1], y)


@breaks("EXP-ABSENT", says="dX holds", source="pytorch/pytorch #193633: the tail of dX, uninitialised")
class LeavesTheTailOfDXUnwritten(Right):
    def backward_rows(self, c, g):
        dx, dA, dB = super().backward_rows(c, g)
        seen = torch.zeros(len(c.x), dtype=torch.bool)
        for own in c.own:
            seen[own] = True
        return torch.where(seen[:, None], dx, 7.0), dA, dB


@breaks("EXP-NONFINITE", says="finite", source="a NaN guard that hides errors")
class ReplacesNaN(Right):
    def output(self, x, p, mask):
        return super().output(torch.nan_to_num(x, posinf=1e4), p, mask)


@breaks("EXP-NONFINITE", says="NaN", source="a dense product of all rows with every expert, times a mask")
class SpreadsNaNOverExperts(Right):
    def forward_rows(self, c):
        y = super().forward_rows(c)
        return y + 0 * c.x.sum()


@breaks("EXP-IDLE", says="without rows holds", source="offsets made from the experts that occur, without idle ones")
class CountsOnlyBusyExperts(Right):
    def routed(self, index, experts):
        busy = [own for own in super().routed(index, experts) if len(own)]
        return busy + [index.new_zeros(0)] * (experts - len(busy))


@breaks("EXP-IDLE", says="is None", source="a gradient that is skipped without rows")
class HasNoGradientWithoutRows(Right):
    def backward_rows(self, c, g):
        dx, dA, dB = super().backward_rows(c, g)
        return (dx, dA, dB) if any(map(len, c.own)) else (dx, None, None)


@breaks("EXP-IDLE", says="without rows holds", source="a gradient buffer whose idle experts nothing writes")
class LeavesIdleGradientsUnwritten(Right):
    def idle(self, like):
        return torch.empty_like(like)


@breaks("EXP-OVERFLOW", says="worst    y", dtypes=("float16",), source="alpha multiplied before ÷ r")
class MultipliesByAlphaFirst(Right):
    def expand(self, S, p):
        rank = p.A.shape[0]
        return S @ p.B.T * (p.scale * 8 * rank) / (8 * rank)


@breaks("EXP-OVERFLOW-ORDER", says="infinite", dtypes=("float16",), source="a scale applied last, in float16")
class ScalesAfterOverflow(Right):
    def expand(self, S, p):
        return S @ p.B.T * p.scale


@breaks("EXP-OVERFLOW-ORDER", says="infinite", dtypes=("float16",), source="a scale that is factored out of the sum")
class ScalesTheSum(Right):
    def output(self, x, p, mask):
        scale, p.scale = p.scale, 1.0
        update = super().output(x, SimpleNamespace(**vars(p) | {"weight": None}), mask)
        return update * scale if p.weight is None else (self.base(x, p) / scale + update) * scale
