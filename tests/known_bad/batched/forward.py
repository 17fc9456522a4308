"""Known-bad twins of forward: rows with another adapter, scale or rank; errors by shape, layout, dtype or value."""

from __future__ import annotations

import torch

from tests.baselines.batched import Right
from tests.known_bad import breaks


@breaks(
    "BAT-FWD",
    "BAT-FWD-NONE",
    says="as if index -1 were the last adapter",
    source="vllm-project/vllm #49656: a gather with index -1",
)
class WrapsTheIndexOfNone(Right):
    def forward(self, x, index, *operands):
        return super().forward(x, torch.where(index < 0, len(operands[2]) - 1, index), *operands)


@breaks("BAT-FWD", says="as if index -1 were adapter 0", source="sgl-project/sglang #24171: an index clamped at 0")
class ClampsTheIndexOfNone(Right):
    def forward(self, x, index, *operands):
        return super().forward(x, index.clamp(min=0), *operands)


@breaks("BAT-FWD", says="as if every row had the adapter of the first row", source="a batch taken to have one adapter")
class UsesTheAdapterOfTheFirstRow(Right):
    def forward(self, x, index, *operands):
        return super().forward(x, index[:1].expand_as(index), *operands)


@breaks("BAT-FWD", says="adapter of the row before", source="segment starts off by one")
class ShiftsTheIndexByARow(Right):
    def forward(self, x, index, *operands):
        return super().forward(x, index.roll(1), *operands)


@breaks("BAT-FWD", says="as if every adapter had the scale of adapter 0", source="vllm lora_shrink takes one scale")
class UsesTheScaleOfTheFirstAdapter(Right):
    def factor(self, scale, adapter):
        return scale[0]


@breaks("BAT-FWD", says="the adapter term is", source="scales looked up by the place in the sorted batch")
class UsesTheScaleOfTheNextAdapter(Right):
    def factor(self, scale, adapter):
        return scale[(adapter + 1) % len(scale)]


@breaks("BAT-FWD", says="elements wrong", source="predibase/lorax: one rank for a batch")
class UsesTheRankOfTheFirstAdapter(Right):
    def rank(self, ranks, adapter, most):
        return super().rank(ranks, 0, most)


@breaks("BAT-FWD", says="adapter", source="a launch grid of the adapters seen first")
class LeavesOutTheLastAdapter(Right):
    def used(self, index, count):
        return super().used(index, count)[: max(1, count - 1)]


@breaks("BAT-FWD", says="elements wrong", source="an empty segment ends the loop over segments")
class StopsAtAnIdleAdapter(Right):
    def used(self, index, count):
        found = []
        for adapter in range(count):
            if not (index == adapter).any():
                break
            found.append(adapter)
        return found


@breaks("BAT-FWD", says="elements wrong", source="segment ends off by one: the last row of each is left out")
class DropsTheLastRowOfEachAdapter(Right):
    def rows(self, index, adapter):
        found = super().rows(index, adapter)
        return found[:-1] if len(found) > 1 else found


@breaks("BAT-FWD", says="NaN", source="pytorch/pytorch #193633: rows past the last segment are never written")
class LeavesRowsOfNoneUnwritten(Right):
    def forward(self, x, index, *operands):
        y = super().forward(x, index, *operands)
        return torch.where((index < 0)[:, None], torch.empty_like(y), y)


@breaks("BAT-FWD", says="as if the bias term were missing", source="the bias joined to the adapters' term")
class AddsTheBiasToAdaptedRowsOnly(Right):
    def forward(self, x, index, weight, bias, *operands):
        y = super().forward(x, index, weight, None, *operands)
        return y if bias is None else y + bias * (index >= 0)[:, None]


@breaks("BAT-FWD", says="elements wrong", source="int32 metadata read as int64")
class ReadsNarrowIndicesInPairs(Right):
    def forward(self, x, index, *operands):
        if index.dtype == torch.int32 and len(index) > 1:
            index = index[: len(index) // 2 * 2 : 2].repeat_interleave(2).repeat(2)[: len(index)]
        return super().forward(x, index, *operands)


@breaks("BAT-FWD-LEAD", says="raised", source="one index for each sequence, not for each token")
class TakesMatricesOnly(Right):
    def lora_batched_linear(self, x, *operands, **options):
        if x.dim() != 2:
            raise RuntimeError(f"expected a matrix, got {x.dim()} dimensions")
        return super().lora_batched_linear(x, *operands, **options)


@breaks("BAT-FWD-LEAD", says="raised", source="the first index of an empty batch")
class ReadsTheFirstRowOfAnEmptyBatch(Right):
    def forward(self, x, index, *operands):
        index[0].item()
        return super().forward(x, index, *operands)


@breaks("BAT-FWD-LEAD", says="elements wrong", source="the index of the first token of each sequence")
class UsesOneAdapterForASequence(Right):
    def lora_batched_linear(self, x, adapter_index, *operands, **options):
        if adapter_index.dim() > 1 and adapter_index.numel():
            adapter_index = adapter_index[..., :1].expand_as(adapter_index)
        return super().lora_batched_linear(x, adapter_index, *operands, **options)


@breaks("BAT-FWD-LAYOUT", says="elements wrong", source="Dao-AILab/flash-attention #355 (ST3): strides of A ignored")
class WalksTheAdaptersAsIfPacked(Right):
    def forward(self, x, index, weight, bias, A, *operands):
        if not A.is_contiguous():
            A = A.as_strided(A.shape, torch.empty(A.shape).stride(), A.storage_offset())
        return super().forward(x, index, weight, bias, A, *operands)


@breaks("BAT-FWD-LAYOUT", says="elements wrong", source="the stride of adapter_index ignored")
class WalksTheIndexAsIfPacked(Right):
    def lora_batched_linear(self, x, adapter_index, *operands, **options):
        if not adapter_index.is_contiguous():
            strides = torch.empty(adapter_index.shape).stride()
            adapter_index = adapter_index.as_strided(adapter_index.shape, strides, adapter_index.storage_offset())
        return super().lora_batched_linear(x, adapter_index, *operands, **options)


@breaks("BAT-FWD-MIXED", says="raised RuntimeError", source="NVIDIA-NeMo/Automodel (DT1)")
class CannotMixDtypes(Right):
    def middle(self, x, A):
        return x @ A.T


@breaks("BAT-FWD-MIXED", says="dtype", source="unslothai/unsloth (DT1)")
class ReturnsTheAdapterDtype(Right):
    def lora_batched_linear(self, x, adapter_index, weight, bias, lora_A, *operands, **options):
        return (
            super().lora_batched_linear(x, adapter_index, weight, bias, lora_A, *operands, **options).to(lora_A.dtype)
        )


@breaks("BAT-FWD-PADDING", says="elements wrong", source="vllm-project/vllm: the padded rank is multiplied whole")
class ReadsThePadding(Right):
    def rank(self, ranks, adapter, most):
        return most


@breaks("BAT-FWD-PADDING", says="NaN", dtypes=("float32",), source="the padding masked by multiplication with 0")
class MultipliesThePaddingByZero(Right):
    def rank(self, ranks, adapter, most):
        self.now = super().rank(ranks, adapter, most)
        return most

    def middle(self, x, A):
        return super().middle(x, A) * (torch.arange(len(A)) < self.now)


@breaks("BAT-FWD-NONE", says="equality required", dtypes=("float32",), source="S of none computed with a merged weight")
class RoundsRowsOfNoneApart(Right):
    def forward(self, x, index, weight, bias, *operands):
        y = super().forward(x, index, weight, bias, *operands)
        if (index < 0).all():
            return y
        apart = torch.stack([(row * weight).flip(1).sum(1) + (0 if bias is None else bias) for row in x])
        return torch.where((index < 0)[:, None], apart, y)


@breaks(
    "BAT-FWD-NONE",
    says="as if index -1 were the last adapter",
    source="vllm-project/vllm #48421",
)
class GivesRowsOfNoneAnAdapterIfAnyRowHasOne(Right):
    def forward(self, x, index, *operands):
        if (index >= 0).any():
            index = torch.where(index < 0, index.max(), index)
        return super().forward(x, index, *operands)


@breaks("BAT-FWD-IDLE", says="NaN", dtypes=("float32",), source="all adapters computed, masked by multiplication")
class MasksByMultiplication(Right):
    def rows(self, index, adapter):
        self.mask = (index == adapter).to(torch.float32)[:, None]
        return torch.arange(len(index))

    def added(self, y, rows, update):
        return y + (update * self.mask).to(y.dtype)


@breaks("BAT-FWD-NONFINITE", says="NaN", source="a mask applied by multiplication")
class SpreadsNaNOverTheRowsOfAnAdapter(Right):
    def update(self, x, A, B, s):
        return super().update(x, A, B, s) + (0 * x.sum(0).sum()).to(A.dtype)


@breaks("BAT-FWD-NONFINITE", says="finite", source="a NaN guard that hides errors")
class ReplacesNaN(Right):
    def lora_batched_linear(self, x, *operands, **options):
        return super().lora_batched_linear(torch.nan_to_num(x, posinf=0.0), *operands, **options)


@breaks("BAT-FWD-LONG", says="elements wrong", source="a tail mask with a wrong bound")
class DropsRanksBeyondABlock(Right):
    def middle(self, x, A):
        S = super().middle(x, A).clone()
        S[:, 64:] = 0
        return S


@breaks("BAT-FWD-LONG", says="elements wrong", source="vllm-project/vllm: a table of max_loras 16 entries")
class KnowsSixteenAdapters(Right):
    def used(self, index, count):
        return super().used(index, count)[:16]


@breaks("BAT-FWD-LONG", says="elements wrong", source="a grid of one block of rows for each adapter")
class ComputesOneBlockOfRows(Right):
    def rows(self, index, adapter):
        return super().rows(index, adapter)[:64]


@breaks("BAT-FWD-ALIGNED", says="elements wrong", source="a vectorised path that takes one scale")
class UsesOneScaleWhereAllIsAligned(Right):
    def forward(self, x, index, weight, bias, A, B, scale, ranks):
        if not any(size % 8 for size in (*A.shape[1:], *B.shape[1:])):
            scale = scale[:1].expand(len(scale))
        return super().forward(x, index, weight, bias, A, B, scale, ranks)


@breaks("BAT-FWD-ALIGNED", says="dA", source="a grouped weight gradient whose groups end a row early")
class EndsGroupsEarlyWhereAllIsAligned(Right):
    def d_A(self, g, x, B, s):
        aligned = not any(size % 8 for size in (x.shape[1], *B.shape))
        return super().d_A(g[:-1], x[:-1], B, s) if aligned else super().d_A(g, x, B, s)
