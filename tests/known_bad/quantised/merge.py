"""Known-bad twins of merging: the update added to codes, rounded away, or merged into another weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import reference
from tests.baselines.quantised import RightLayer, RightPacked
from tests.baselines.requantised import RequantisingLayer, requantising
from tests.known_bad import breaks
from tests.known_bad.quantised.forward import wrong


def badly(says: str, **options: Any) -> Any:
    """A decorator that registers a target whose layers merge by requantising in this wrong way."""

    def register(layer: type[RequantisingLayer]) -> type[RequantisingLayer]:
        breaks("QNT-MERGE-BOUND", says=says, dtypes=("float32",), **options)(requantising(layer))
        return layer

    return register


@wrong("QNT-MERGE-REFUSED", says="returned NoneType: expected ValueError", source="filipstrand/mflux #440")
class AddsTheUpdateToTheCodes(RightLayer):
    @torch.no_grad()
    def merge(self) -> None:
        codes = self.weight.data.view(-1)
        update = (self.lora_B.weight @ self.lora_A.weight * self.scale).flatten()[: len(codes)]
        codes[: len(update)] += update.round().to(torch.int8).view(torch.uint8)


@wrong("QNT-MERGE-REFUSED", says="raised RuntimeError: shape", source="W += ΔW on the codes of 4 bits")
class FailsInTheMiddleOfMerging(RightLayer):
    def merge(self) -> None:
        raise RuntimeError(f"shape {list(self.weight.shape)} does not match [{self.out_features}, {self.in_features}]")


@wrong("QNT-MERGE-REFUSED", says="says that it is merged", source="a flag set before the check")
class SaysThatItIsMergedAfterARefusal(RightLayer):
    refused = False

    @property
    def merged(self) -> bool:
        return self.refused

    def merge(self) -> None:
        try:
            super().merge()
        finally:
            self.__dict__["refused"] = True

    def forward(self, x: Tensor) -> Tensor:
        base, update = self.base(x), self.update(x)
        return (base + update.to(base.dtype)).to(x.dtype)


@wrong("QNT-MERGE-REFUSED", says="does not name the format")
class DoesNotSayTheFormat(RightLayer):
    def merge(self) -> None:
        raise ValueError(f"{self.original_class.__name__} cannot be merged")


@wrong("QNT-MERGE-REFUSED", says="does not name the class")
class DoesNotSayTheClass(RightLayer):
    def merge(self) -> None:
        raise ValueError(f"a weight in {self.format} cannot be merged")


@wrong("QNT-MERGE-REFUSED", says="changed lora_B", source="an adapter that is emptied first")
class EmptiesTheAdapterBeforeItRefuses(RightLayer):
    def merge(self) -> None:
        self.lora_B.weight.data.zero_()
        super().merge()


class MergesOtherwise(RightPacked):
    """A target whose `merge_dequantized` is `merged`."""

    def __init__(self) -> None:
        self.merge_dequantized: Any = self.merged

    def merged(self, layer: Any) -> Any:
        return reference.merge_dequantized(layer)


@breaks("QNT-MERGE-DEQ", says="the merged weight", source="the full-precision checkpoint is loaded to merge into")
class MergesIntoTheOriginalWeight(MergesOtherwise):
    def packed_linear(self, linear: nn.Linear, form: str, **options: Any) -> Any:  # type: ignore[override]
        base = reference.packed_linear(linear, form, **options)
        base.__dict__["original"] = linear.weight.detach().clone()
        return base

    def merged(self, layer: Any) -> Any:
        linear = super().merged(layer)
        off = layer.original.float() - reference.dequantize_weight(layer)
        linear.weight.data = (linear.weight.float() + off).to(linear.weight.dtype)
        return linear


@breaks("QNT-MERGE-DEQ", says="the merged weight", dtypes=("bfloat16",), source="B A computed in 16 bits")
class RoundsTheUpdateFirst(MergesOtherwise):
    def merged(self, layer: Any) -> Any:
        linear = super().merged(layer)
        update = (layer.lora_B.weight @ layer.lora_A.weight).to(torch.bfloat16) * layer.scale
        numbers = reference.dequantize_weight(layer).to(torch.bfloat16)
        linear.weight.data = numbers + update
        return linear


@breaks("QNT-MERGE-DEQ", says="the merged weight", source="alpha/r forgotten in a merge script")
class LeavesTheScaleOut(MergesOtherwise):
    def merged(self, layer: Any) -> Any:
        linear = super().merged(layer)
        missing = (layer.lora_B.weight.float() @ layer.lora_A.weight.float()) * (1 - layer.scale)
        linear.weight.data = (linear.weight.float() + missing).to(linear.weight.dtype)
        return linear


@breaks("QNT-MERGE-DEQ", says="lacks the bias", source="a new nn.Linear with bias=False")
class LosesTheBias(MergesOtherwise):
    def merged(self, layer: Any) -> Any:
        linear = super().merged(layer)
        linear.bias = None
        return linear


@breaks("QNT-MERGE-DEQ", says="took the adapter off", source="a merge that unloads the layer it is given")
class TakesTheAdapterOff(MergesOtherwise):
    def merged(self, layer: Any) -> Any:
        linear = super().merged(layer)
        del layer.lora_A
        return linear


@badly("of the weight left an error of", source="ml-explore/mlx-lm #1172: ΔW of 1 % changes no code")
class ReportsSuccessWithoutAChange(RequantisingLayer):
    def loses(self, error: float) -> bool:
        return False


@badly("merge() and unmerge() changed", source="huggingface/peft: the weight drifts by 34 % after five times")
class UnmergesByRequantising(RequantisingLayer):
    @torch.no_grad()
    def unmerge(self) -> None:
        update = self.lora_B.weight @ self.lora_A.weight * self.scale
        self.write(dict(self.packed(self.numbers(torch.float32) - update).fields))
        self.__dict__["kept"] = None


@badly("the requantised weight", source="absmax taken before the merge's last step")
class PacksWithSmallerScales(RequantisingLayer):
    def packed(self, numbers: Tensor) -> reference.PackedWeight:
        return super().packed(numbers * 0.97)


@badly("the requantised weight", source="a loop over whole blocks of rows")
class LeavesTheLastRowOut(RequantisingLayer):
    def packed(self, numbers: Tensor) -> reference.PackedWeight:
        return super().packed(torch.cat([numbers[:-1], self.numbers(torch.float32)[-1:]]))


@badly("merge() returned", source="a merge that says nothing of its error")
class ReportsTheErrorOfTheWholeWeight(RequantisingLayer):
    @torch.no_grad()
    def merge(self) -> float:  # type: ignore[override]
        return super().merge() ** 2
