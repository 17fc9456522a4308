"""Known-bad twins of repeated calls: indices, ranks, scales, adapters or counts of an earlier call are kept."""

from __future__ import annotations

from typing import Any

import torch

from tests.baselines.batched import Right
from tests.known_bad import breaks


class Keeping(Right):
    """A target that keeps something by the address of a tensor."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.kept: dict[Any, Any] = {}

    def first(self, tensor: Any) -> Any:
        """A copy of the tensor as it was in the first call with its address and shape."""
        if tensor is None:
            return None
        key = tensor.data_ptr(), tuple(tensor.shape), tensor.dtype
        _held, copied = self.kept.setdefault(key, (tensor, tensor.detach().clone()))
        return copied


@breaks("BAT-META-REFILL", says="elements wrong", source="the sorted order of an earlier call, kept by its address")
class KeepsTheIndex(Keeping):
    def lora_batched_linear(self, x, adapter_index, *operands, **options):
        return super().lora_batched_linear(x, self.first(adapter_index), *operands, **options)


@breaks("BAT-META-REFILL", says="elements wrong", source="scales uploaded once")
class KeepsTheScales(Keeping):
    def lora_batched_linear(self, x, adapter_index, weight, bias, A, B, scale, **options):
        return super().lora_batched_linear(x, adapter_index, weight, bias, A, B, self.first(scale), **options)


@breaks("BAT-META-REFILL", says="elements wrong", source="predibase/lorax #634: a graph traced without the ranks")
class KeepsTheRanks(Keeping):
    def lora_batched_linear(self, *operands, ranks=None):
        return super().lora_batched_linear(*operands, ranks=self.first(ranks))


@breaks("BAT-META-REFILL", says="elements wrong", source="sgl-project/sglang #28371: the number of segments at capture")
class KeepsTheAdaptersInUse(Keeping):
    def used(self, index, count):
        found = [adapter for adapter in range(count) if (index == adapter).any()]
        return self.kept.setdefault((index.data_ptr(), len(index), count), (found, index))[0]


@breaks("BAT-META-ADAPTERS", says="elements wrong", source="adapters stacked once, and kept by their address")
class KeepsTheAdapters(Keeping):
    def lora_batched_linear(self, x, adapter_index, weight, bias, A, *operands, **options):
        kept = self.first(A) + 0 * A if A.requires_grad else self.first(A)
        return super().lora_batched_linear(x, adapter_index, weight, bias, kept, *operands, **options)


@breaks(
    "BAT-META-COUNT", says="elements wrong", source="sgl-project/sglang #28371: a grid of the first call's segments"
)
class KeepsTheNumberOfAdapters(Keeping):
    def used(self, index, count):
        return super().used(index, min(count, self.kept.setdefault("count", count)))


@breaks("BAT-META-COUNT", says="raised", source="a buffer for the rows of the first call")
class KeepsABufferOfRows(Keeping):
    def base(self, x, weight, bias):
        y = super().base(x, weight, bias)
        buffer = self.kept.setdefault((y.shape[1], y.dtype), torch.empty_like(y))
        return buffer[: len(x)].copy_(y).clone()


@breaks("BAT-META-COMPILE", says="elements wrong", dtypes=("float32",), source="ranks and indices baked into the graph")
class CompilesInTheFirstIndex(Keeping):
    def lora_batched_linear(self, x, adapter_index, *operands, **options):
        if torch.compiler.is_compiling():
            first = _first_index(adapter_index)
            adapter_index = first if first.shape == adapter_index.shape else adapter_index
        return super().lora_batched_linear(x, adapter_index, *operands, **options)


_INDEX: list[torch.Tensor] = []


@torch.compiler.disable
def _first_index(index: torch.Tensor) -> torch.Tensor:
    """The index of the first compiled call since the last change of the number of rows."""
    if not _INDEX or _INDEX[0].shape != index.shape:
        _INDEX[:] = [index.clone()]
    return _INDEX[0]
