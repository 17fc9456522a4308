"""Known-bad twins of side effects: inputs, margins, outputs or settings that a call changes; noise; autocast."""

from __future__ import annotations

import torch

from tests.baselines.batched import Right
from tests.known_bad import breaks
from tests.known_bad.batched.metadata import Keeping


@breaks("BAT-MEM-INPUTS", says="x was modified in place", source="axolotl #3800 (AL1): rows scaled in place")
class ScalesXInPlace(Right):
    def forward(self, x, *operands):
        y = super().forward(x, *operands)
        x.mul_(2)
        return y


@breaks("BAT-MEM-INPUTS", says="adapter_index was modified in place", source="-1 replaced in the caller's index")
class ReplacesNoneInTheIndex(Right):
    def forward(self, x, index, *operands):
        y = super().forward(x, index, *operands)
        index.clamp_(min=0)
        return y


@breaks("BAT-MEM-INPUTS", says="lora_B was modified in place", source="the padding cleared in the caller's adapters")
class ScalesTheAdaptersInPlace(Right):
    def forward(self, x, index, weight, bias, A, B, scale, ranks):
        y = super().forward(x, index, weight, bias, A, B, scale, ranks)
        B.data.mul_(scale.abs().max().to(B.dtype) + 1)
        return y


@breaks("BAT-MEM-MARGINS", says="memory around x was written", source="NVIDIA-NeMo/Automodel #217 (MK1)")
class WritesBeyondX(Right):
    def lora_batched_linear(self, x, *operands, **options):
        y = super().lora_batched_linear(x, *operands, **options)
        if x.numel():
            x.detach().as_strided((1,), (1,), x.storage_offset() - 1).zero_()
        return y


@breaks("BAT-MEM-MARGINS", says="before adapter_index", source="the number of segments written before the index")
class WritesBeforeTheIndex(Right):
    def lora_batched_linear(self, x, adapter_index, *operands, **options):
        adapter_index.as_strided((1,), (1,), adapter_index.storage_offset() - 1).fill_(1)
        return super().lora_batched_linear(x, adapter_index, *operands, **options)


@breaks("BAT-MEM-MARGINS", says="NaN", dtypes=("float32",), source="a tail of K read and multiplied by zero")
class ReadsBeyondX(Right):
    def lora_batched_linear(self, x, *operands, **options):
        y = super().lora_batched_linear(x, *operands, **options)
        return y + 0 * x.detach().as_strided((1,), (1,), x.storage_offset() - 1)


@breaks("BAT-MEM-OUTPUT", says="elements wrong", source="an output buffer that is handed out and used again")
class KeepsTheOutput(Keeping):
    def lora_batched_linear(self, x, adapter_index, *operands, **options):
        y = super().lora_batched_linear(x, adapter_index, *operands, **options)
        if torch.is_grad_enabled():
            return y
        return self.kept.setdefault((x.data_ptr(), adapter_index.data_ptr()), (y, x, adapter_index))[0]


@breaks("BAT-MEM-LATER", says="elements wrong", source="one output buffer for all calls of a shape")
class WritesIntoTheOutputOfTheCallBefore(Keeping):
    def forward(self, x, *operands):
        y = super().forward(x, *operands)
        buffer = self.kept.setdefault((tuple(y.shape), y.dtype), torch.empty_like(y))
        buffer.copy_(y)
        return buffer.view_as(buffer).detach()


@breaks("BAT-MEM-LATER", says="elements wrong", source="metadata for backward kept in the module, not in the graph")
class BacksThroughTheLastIndex(Keeping):
    def forward(self, x, index, *operands):
        self.kept["index"] = index
        return super().forward(x, index, *operands)

    def backward(self, g, x, index, *operands):
        last = self.kept["index"]
        return super().backward(g, x, last if last.shape == index.shape else index, *operands)


@breaks(
    "BAT-DET", says="differs between two identical runs", dtypes=("float32",), source="atomic additions over split K"
)
class AddsInAnyOrder(Keeping):
    def middle(self, x, A):
        self.kept["calls"] = self.kept.get("calls", 0) + 1
        order = torch.arange(A.shape[1]).roll(self.kept["calls"] * 5)
        return super().middle(x[:, order], A[:, order])


@breaks("BAT-SIDE", says="torch's random state", source="a random order of the rows of an adapter")
class ShufflesTheRows(Right):
    def rows(self, index, adapter):
        found = super().rows(index, adapter)
        return found[torch.randperm(len(found))]


@breaks("BAT-SIDE", says="changed", source="one thread for small batches, and never set back")
class ChangesTheDefaultDtype(Right):
    def forward(self, *operands):
        torch.set_default_dtype(torch.float64)
        return super().forward(*operands)


@breaks("BAT-AMP", says="dtype", dtypes=("float32",), source="unslothai/unsloth #7020 (PR4)")
class IgnoresAutocast(Right):
    def lora_batched_linear(self, *operands, **options):
        with torch.autocast("cpu", enabled=False):
            return super().lora_batched_linear(*operands, **options)
