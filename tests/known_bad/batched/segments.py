"""Known-bad twins of the halves on sorted rows: ends off by one, empty segments, stale rows, scales, ranks."""

from __future__ import annotations

import torch

from tests.baselines.batched import Right
from tests.known_bad import breaks


@breaks("BAT-SHRINK-REST", says="NaN", source="sgl-project/sglang sgemm_lora_a: the output allocated and not cleared")
class LeavesTheRestUnwritten(Right):
    def blank(self, x, lora_A):
        return torch.empty(len(x), lora_A.shape[1], dtype=lora_A.dtype)


@breaks("BAT-SHRINK", "BAT-EXPAND", says="elements wrong", source="inclusive segment ends")
class EndsEachSegmentARowEarly(Right):
    def pieces(self, ends, adapters):
        return [(first, max(first, last - 1), adapter) for first, last, adapter in super().pieces(ends, adapters)]


@breaks("BAT-SHRINK", says="elements wrong", source="an empty segment ends the loop over segments")
class StopsAtAnEmptySegment(Right):
    def pieces(self, ends, adapters):
        found = []
        for first, last, adapter in super().pieces(ends, adapters):
            if first == last:
                break
            found.append((first, last, adapter))
        return found


@breaks("BAT-SHRINK", says="elements wrong", source="one segment for each adapter: the last one wins")
class KeepsOneSegmentForAnAdapter(Right):
    def pieces(self, ends, adapters):
        return list(
            {adapter: (first, last, adapter) for first, last, adapter in super().pieces(ends, adapters)}.values()
        )


@breaks("BAT-SHRINK", says="elements wrong", source="the place of a segment taken for its adapter")
class TakesTheSegmentForTheAdapter(Right):
    def pieces(self, ends, adapters):
        count = int(adapters.max()) + 1
        found = super().pieces(ends, adapters)
        return [(first, last, min(place, max(count - 1, 0))) for place, (first, last, _) in enumerate(found)]


@breaks("BAT-SHRINK-REST", "BAT-EXPAND", says="elements wrong", source="vllm-project/vllm: the padded rank multiplied")
class ReadsThePaddingOfSegments(Right):
    def rank(self, ranks, adapter, most):
        return most


@breaks("BAT-SHRINK-REST", says="elements wrong", source="-1 wraps to the last adapter")
class WrapsSegmentsOfNone(Right):
    def pieces(self, ends, adapters):
        return super().pieces(ends, torch.where(adapters < 0, adapters.max().clamp(min=0), adapters))


@breaks("BAT-SHRINK-REST", says="elements wrong", source="rows past the last segment given to it")
class StretchesTheLastSegment(Right):
    def lora_shrink(self, x, lora_A, segment_ends, segment_adapters, *, ranks=None):
        ends = torch.cat([segment_ends[:-1], segment_ends.new_full((1,), len(x))])
        return super().lora_shrink(x, lora_A, ends, segment_adapters.clamp(min=0), ranks=ranks)


@breaks("BAT-EXPAND", says="elements wrong", source="vllm-project/vllm lora_shrink: one scale for the batch")
class UsesOneScaleInExpand(Right):
    def factor(self, scale, adapter):
        return scale[0]


@breaks("BAT-EXPAND", says="elements wrong", source="add_inputs not set")
class ExpandsOntoNothing(Right):
    def onto(self, base):
        return torch.zeros_like(base)


@breaks("BAT-EXPAND", says="base was modified in place", source="sgl-project/sglang adds to base_output")
class ExpandsInPlace(Right):
    def onto(self, base):
        return base


@breaks("BAT-SEGMENTS", says="elements wrong", source="the scale applied in both halves")
class ScalesInBothHalves(Right):
    def lora_shrink(self, *operands, **options):
        return super().lora_shrink(*operands, **options) * 2


@breaks(
    "BAT-SEGMENTS-REFUSE", says="exceeds the rows: expected an error", dtypes=("float32",), source="a clamped slice"
)
class ClampsTheEnds(Right):
    def lora_shrink(self, x, lora_A, segment_ends, segment_adapters, *, ranks=None):
        return super().lora_shrink(x, lora_A, segment_ends.clamp(max=len(x)), segment_adapters, ranks=ranks)
