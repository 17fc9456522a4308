"""Known-bad twins of arguments: operands, indices and offsets that do not fit are trimmed, cast or believed."""

from __future__ import annotations

import itertools

import torch

from tests.baselines.experts import Right
from tests.known_bad import breaks


@breaks("EXP-SHAPES", says="expected an error", dtypes=("float32",), source="a kernel that does not check shapes")
class TrimsToTheCommonSize(Right):
    def refuse(self, x, weight, bias, A, B):
        pass

    def call(self, x, own, weight, bias, A, B, scale, drop):
        experts, r = min(map(len, (weight, A, B))), min(A.shape[1], B.shape[2])
        k = min(x.shape[1], weight.shape[2], A.shape[2])
        own = [rows if e < experts else rows[:0] for e, rows in enumerate(own)][:experts]
        return super().call(
            x[:, :k],
            own,
            weight[:experts, :, :k],
            None if bias is None else bias[:experts],
            A[:experts, :r, :k],
            B[:experts, :, :r],
            scale,
            drop,
        )


@breaks("EXP-SHAPES", says="although experts of", dtypes=("float32",), source="the first E experts of a larger tensor")
class TakesMoreExperts(Right):
    def refuse(self, x, weight, bias, A, B):
        experts = min(len(t) for t in (weight, A, B) if t is not None)
        cut = [None if t is None else t[:experts] for t in (weight, bias, A, B)]
        super().refuse(x, *cut)

    def call(self, x, own, weight, bias, A, B, scale, drop):
        experts = min(len(t) for t in (weight, A, B) if t is not None)
        cut = [None if t is None else t[:experts] for t in (weight, bias, A, B)]
        return super().call(x, own[:experts], *cut, scale, drop)


@breaks("EXP-INDEX", says="is a float", dtypes=("float32",), source="an index that is cast to integers")
class CastsTheIndex(Right):
    def refuse_index(self, x, index):
        super().refuse_index(x, index.long())


@breaks("EXP-INDEX", says="the index", dtypes=("float32",), source="rows without an index treated as absent")
class TakesAShorterIndex(Right):
    def refuse_index(self, x, index):
        super().refuse_index(x, torch.zeros(x.shape[:-1], dtype=index.dtype))


@breaks("EXP-OFFSETS", says="decrease", dtypes=("float32",), source="offsets that a kernel believes")
class BelievesTheOffsets(Right):
    def refuse_offsets(self, x, offsets, experts):
        if len(offsets) != experts or offsets.is_floating_point():
            raise ValueError("expected one integer for each expert")

    def routed_sorted(self, offsets, rows):
        ends = [0, *offsets.clamp(0, rows).tolist()]
        return [torch.arange(start, max(start, end)) for start, end in itertools.pairwise(ends)]


@breaks("EXP-OFFSETS", says="fewer", dtypes=("float32",), source="offsets of the busy experts only")
class TakesFewerOffsets(Right):
    def refuse_offsets(self, x, offsets, experts):
        missing = offsets[-1:].expand(experts - len(offsets))
        super().refuse_offsets(x, torch.cat([offsets, missing]), experts)
