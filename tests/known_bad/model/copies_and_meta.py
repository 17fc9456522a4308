"""Known-bad twins of copies and meta: a patched layer is lost on the meta device, in a copy, or in a saved file."""

# ruff: noqa: ARG005  (twins ignore arguments on purpose)

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

import reference
from tests.baselines.model import RightModel
from tests.known_bad import breaks
from tests.known_bad.model.spoiled_patch import MODEL, AfterPatching, Computes, reclassed


@breaks("MOD-META", says="lora_A.weight is on cpu after patching a meta layer", **MODEL)
@breaks("MOD-META-MODEL", says="lora_A.weight is on cpu after patching a meta model", **MODEL)
class MaterialisesAdapters(AfterPatching):
    def spoil(self, layer: Any, options: Any) -> None:
        if layer.weight.is_meta:
            layer.lora_A.to_empty(device="cpu")
            layer.lora_B.to_empty(device="cpu")


@breaks("MOD-META", says="raised RuntimeError", **MODEL)
class LooksAtTheValues(AfterPatching):
    def spoil(self, layer: Any, options: Any) -> None:
        assert not bool(layer.weight.isnan().any())


@breaks("MOD-META-MODEL", says="embed.weight is on cpu", **MODEL)
class MaterialisesTheModel(RightModel):
    def freeze(self, model: nn.Module, chosen: Any) -> None:
        super().freeze(model, chosen)
        if any(p.is_meta for p in model.parameters()):
            model.to_empty(device="cpu")


@breaks("MOD-META-LOAD", says="NaN", **MODEL)
class RemembersTheAdaptersItMade(Computes):
    def spoil(self, layer: Any, options: Any) -> None:
        # a tuple hides them from to_empty and load_state_dict(assign=True)
        layer.held = (layer.lora_A.weight, layer.lora_B.weight)
        super().spoil(layer, options)

    def compute(self, layer: Any, x: Tensor) -> Tensor:
        return reference.lora_linear(x, layer.weight, layer.bias, *layer.held, layer.scale)


class _Restored(AfterPatching):
    """A patched layer whose copies are changed by `restore`."""

    def spoil(self, layer: Any, options: Any) -> None:
        restore = self.restore

        def deepcopied(original: Any, memo: Any) -> Any:
            clone = original.__class__.__new__(original.__class__)
            clone.__dict__.update(copy.deepcopy(original.__dict__, memo))
            return restore(clone, original)

        reclassed(layer, __deepcopy__=deepcopied)

    def restore(self, clone: Any, original: Any) -> Any:
        raise NotImplementedError


@breaks("MOD-COPY", says="raised", **MODEL)
class HasAClassThatIsInNoModule(AfterPatching):
    def spoil(self, layer: Any, options: Any) -> None:
        reclassed(layer)


@breaks("MOD-COPY", says="y[", **MODEL)
class ForgetsTheScale(_Restored):
    def restore(self, clone: Any, original: Any) -> Any:
        clone.scale = 8.0
        return clone


@breaks("MOD-COPY-CLASS", says="shares lora_A", phrase="shares lora_A with its copies", **MODEL)
class CopiesShareLoraA(_Restored):
    def restore(self, clone: Any, original: Any) -> Any:
        clone.lora_A = original.lora_A
        return clone


@breaks("MOD-COPY-CLASS", says="changed requires_grad", phrase="gives copies a trainable weight", **MODEL)
class CopiesAreTrainable(_Restored):
    def restore(self, clone: Any, original: Any) -> Any:
        return clone.requires_grad_(True)


def _plain(cls: Any, state: Any) -> Any:
    layer = cls.__new__(cls)
    layer.__dict__.update(state)
    return layer


@breaks(
    "MOD-COPY-CLASS",
    says="of a patched TaggedLinear gave a LinearLoRA",
    phrase="loses the subclass when it is copied",
    **MODEL,
)
class CopiesLoseTheSubclass(AfterPatching):
    def spoil(self, layer: Any, options: Any) -> None:
        reclassed(
            layer,
            __reduce_ex__=lambda layer, protocol: (_plain, (reference.LinearLoRA, layer.__dict__.copy())),
        )


@breaks("MOD-COPY-MODEL", says="shares adapters", phrase="is not copied with its model", **MODEL)
class CopiesShareTheLayer(AfterPatching):
    def spoil(self, layer: Any, options: Any) -> None:
        reclassed(layer, __deepcopy__=lambda layer, memo: layer)


@breaks("MOD-COPY-MODEL", says="computes something else", phrase="forgets the scale when it is copied", **MODEL)
class CopiesForgetTheScale(_Restored):
    def restore(self, clone: Any, original: Any) -> Any:
        clone.scale = torch.tensor(clone.scale).mul(0.5).item()
        return clone
