"""Known-bad twins of the relations: results that depend on the place of an adapter, on the order or on neighbours."""

from __future__ import annotations

import torch

from tests.baselines.batched import Right
from tests.known_bad import breaks


class RowByRow(Right):
    """Each row's update and base from the same sums, whatever the other rows are."""

    def base(self, x, weight, bias):
        y = (x[:, None, :] * weight).sum(-1)
        return y if bias is None else y + bias

    def update(self, x, A, B, s):
        S = (x.to(A.dtype)[:, None, :] * A).sum(-1)
        return (S[:, None, :] * B).sum(-1) * s


@breaks("BAT-REL-ONE", says="one adapter's y", source="the first adapter of a table taken for the only one")
class UsesTheFirstAdapterIfAllRowsAgree(Right):
    def forward(self, x, index, *operands):
        if len(index) and (index == index[0]).all() and index[0] > 0:
            index = torch.zeros_like(index)
        return super().forward(x, index, *operands)


@breaks("BAT-REL-PERMUTE", says="permuted rows", source="rows sorted by adapter, and not sorted back")
class LeavesTheRowsSorted(Right):
    def forward(self, x, index, *operands):
        order = index.argsort(stable=True)
        return super().forward(x[order], index[order], *operands)


@breaks("BAT-REL-PERMUTE", says="elements wrong", source="consecutive rows of one adapter taken as its segment")
class EndsASegmentAtTheNextAdapter(Right):
    def rows(self, index, adapter):
        found = super().rows(index, adapter)
        gaps = (found.diff() > 1).nonzero()[:, 0]
        return found[: int(gaps[0]) + 1] if len(gaps) else found


@breaks("BAT-REL-SPLIT", says="part of the batch", source="a kernel for one token that takes the adapter of slot 0")
class DecodesWithTheFirstAdapter(Right):
    def forward(self, x, index, *operands):
        return super().forward(x, index.clamp(max=0) if len(index) <= 2 else index, *operands)


@breaks("BAT-REL-RENAME", says="renamed adapters", source="the scale of a slot kept for its first adapter")
class ScalesBySlot(Right):
    def factor(self, scale, adapter):
        return scale[0] if adapter else scale[adapter]


@breaks("BAT-REL-UNUSED", says="further adapters", source="indices counted among the adapters in use")
class CountsUsedAdaptersOnly(Right):
    def forward(self, x, index, *operands):
        return super().forward(x, (index - index[index >= 0].min().item()).clamp(min=-1), *operands)


@breaks("BAT-REL-NEIGHBOURS", says="", source="one scale for a batch: that of its largest adapter")
class UsesTheScaleOfTheLargestIndex(Right):
    def forward(self, x, index, *operands):
        self.largest = int(index.max()) if len(index) else 0
        return super().forward(x, index, *operands)

    def factor(self, scale, adapter):
        return scale[max(self.largest, 0)]


@breaks("BAT-REL-NEIGHBOURS", says="", source="rows without an adapter dropped from a batch that has none at its end")
class DropsTheRowsAfterTheLastAdapter(Right):
    def rows(self, index, adapter):
        found = super().rows(index, adapter)
        return found if index[-1:].lt(0).any() else found[found < len(index) - 1]


@breaks("BAT-REL-NEIGHBOURS-EXACT", says="equality required", source="split K chosen by the number of rows")
class ChoosesTheOrderByTheNumberOfRows(RowByRow):
    def update(self, x, A, B, s):
        if len(x) % 2:
            return super().update(x.flip(1), A.flip(1), B, s)
        return super().update(x, A, B, s)
