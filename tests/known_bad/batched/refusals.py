"""Known-bad twins of refusals: malformed indices, counts and ranks that are computed with all the same."""

from __future__ import annotations

import torch

from tests.baselines.batched import Right
from tests.known_bad import breaks


class Unchecked(Right):
    """A target that checks nothing."""

    def refuse(self, *operands):
        pass


@breaks("BAT-REFUSE-INDEX", says="has one element: expected an error", dtypes=("float32",), source="a broadcast index")
class BroadcastsTheIndex(Unchecked):
    def refuse(self, x, index, *operands):
        super(Unchecked, self).refuse(x, index.expand(x.shape[:-1]) if len(index) == 1 else index, *operands)

    def forward(self, x, index, *operands):
        return super().forward(x, index.expand(len(x)), *operands)


@breaks("BAT-REFUSE-INDEX", says="holds floats: expected an error", dtypes=("float32",), source="torch.Tensor([0, 1])")
class RoundsTheIndex(Right):
    def refuse(self, x, index, *operands):
        super().refuse(x, index.long(), *operands)


@breaks("BAT-REFUSE-INDEX", says="one row short: expected an error", dtypes=("float32",), source="rows past the index")
class GivesRowsPastTheIndexNoAdapter(Unchecked):
    def lora_batched_linear(self, x, adapter_index, *operands, **options):
        flat = adapter_index.reshape(-1)
        rows = x[..., 0].numel()
        index = torch.cat([flat, flat.new_full((max(0, rows - len(flat)),), -1)])[:rows]
        return super().lora_batched_linear(x, index.reshape(x.shape[:-1]), *operands, **options)


@breaks(
    "BAT-REFUSE-COUNTS", says="scale has one adapter less", dtypes=("float32",), source="scales read past their end"
)
class ChecksTheMatricesOnly(Unchecked):
    def refuse(self, x, index, weight, bias, A, B, scale, ranks):
        super(Unchecked, self).refuse(x, index, weight, bias, A, B, scale.new_ones(len(A)), None)

    def factor(self, scale, adapter):
        return scale[min(adapter, len(scale) - 1)]

    def rank(self, ranks, adapter, most):
        return super().rank(ranks, min(adapter, len(ranks) - 1), most)


@breaks(
    "BAT-REFUSE-COUNTS", says="expected an error", dtypes=("float32",), source="the smaller number of adapters taken"
)
class TrimsToTheCommonNumber(Unchecked):
    def forward(self, x, index, weight, bias, A, B, scale, ranks):
        count = min(len(A), len(B), len(scale), len(ranks))
        return super().forward(x, index, weight, bias, A[:count], B[:count], scale[:count], ranks[:count])


@breaks("BAT-REFUSE-COUNTS", says="modified", dtypes=("float32",), source="a check after the work has begun")
class ChecksTooLate(Right):
    def refuse(self, x, index, weight, bias, A, *operands):
        with torch.no_grad():
            A.mul_(2)
        super().refuse(x, index, weight, bias, A, *operands)


@breaks(
    "BAT-REFUSE-RANGE", says="adapter_index holds", dtypes=("float32",), source="huggingface/peft #2090: names unknown"
)
class GivesUnknownAdaptersTheBase(Right):
    def refuse(self, x, index, weight, bias, A, *operands):
        super().refuse(x, torch.where((index < -1) | (index >= len(A)), -1, index), weight, bias, A, *operands)


@breaks("BAT-REFUSE-RANGE", says="ranks holds", dtypes=("float32",), source="a slice clamps a rank that is too large")
class ClampsTheRanks(Right):
    def refuse(self, *operands):
        super().refuse(*operands[:-1], None)

    def rank(self, ranks, adapter, most):
        return max(0, min(super().rank(ranks, adapter, most), most))
