"""Known-bad twins of lives on a packed base: another storage than the layer's, a cast of it, a merge."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import reference
from reference.packed_layer import packed_output
from reference.patched_class import patched_class
from tests.known_bad import record


class PackedTarget:
    """A target whose layers on packed bases are of a class, and others the reference's."""

    LinearLoRA = reference.LinearLoRA
    packed_linear = staticmethod(reference.packed_linear)
    packed_fields = staticmethod(reference.packed_fields)

    def __init__(self, kind: Any) -> None:
        self.kind = kind

    def patch_linear_module(self, orig_linear: Any, *arguments: Any, **options: Any) -> Any:
        layer: Any = reference.patch_linear_module(orig_linear, *arguments, **options, use_triton=False)
        if layer.has_packed_base:
            layer.__class__ = patched_class(layer.original_class, self.kind)
        return layer


def twin(**options: Any) -> Any:
    """A decorator that registers a target with this class of layers as a known-bad twin."""

    def register(kind: type) -> type:
        record(kind.__name__, PackedTarget(kind), "LIFE-LAYER-PACKED", dtypes=("float32", "bfloat16"), **options)
        return kind

    return register


@twin(says="merge() raised no ValueError", source="ml-explore/mlx-lm #1172")
class MergesByRequantising(reference.LinearLoRA):
    packed_weight: reference.PackedWeight

    @torch.no_grad()
    def merge(self) -> None:
        weight: Any = self.packed_weight
        packed = reference.pack_weight(self.base_weight + self.lora_B.weight.float() @ self.lora_A.weight.float(),
                                       weight.format, **weight.options)  # fmt: skip
        for name, field in weight.fields.items():
            field.copy_(packed.fields[name])


class Keeps(reference.LinearLoRA):
    """A layer that computes with a storage that it keeps; `key` says for how long."""

    kept: Any = None
    packed_weight: reference.PackedWeight

    def key(self) -> Any:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        if self.kept is None or self.kept[0] != self.key():
            weight: Any = self.packed_weight
            with torch.inference_mode(False):
                fields = {name: field.clone() for name, field in weight.fields.items()}
            self.__dict__["kept"] = self.key(), weight.without_fields().with_fields(fields)
        return packed_output(self, self.kept[1], x)


@twin(says="y after", source="Ŵ decoded once, at the first call")
class ComputesWithTheFirstStorage(Keeps):
    def key(self) -> Any:
        return None


@twin(says="y after", source="a cache by the address of the codes, which loading in place leaves")
class KnowsTheStorageByItsAddress(Keeps):
    def key(self) -> Any:
        return self.weight.data_ptr()


@twin(says="the storage has other bytes", source="a cast of every floating point tensor")
class CastsItsScales(reference.LinearLoRA):
    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        held = [t for t in self._buffers.values() if t is not None and t.is_floating_point()]
        before = [scale.detach().clone() for scale in held]
        layer = super()._apply(fn, recurse)
        if not any(t.is_meta for t in self._buffers.values() if t is not None):
            held = [t for t in self._buffers.values() if t is not None and t.is_floating_point()]
            for scale, old in zip(held, before, strict=True):
                scale.data.copy_(fn(old).to(scale.dtype) if not old.is_meta else scale)
        return layer


@twin(says="after", source="a deepcopy that shares the base")
class SharesItsStorageWithCopies(reference.LinearLoRA):
    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        import copy

        memo[id(self.weight)] = self.weight
        return copy._reconstruct(self, memo, *self.__reduce_ex__(4))  # type: ignore[attr-defined]


@twin(says="dA after merge-refused is None", source="a layer that is prepared for the merge before the check")
class FreezesTheAdapterBeforeItRefuses(reference.LinearLoRA):
    def merge(self) -> None:
        if self.has_packed_base:
            self.lora_A.requires_grad_(False)
        super().merge()
