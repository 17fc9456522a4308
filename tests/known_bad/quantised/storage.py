"""Known-bad twins of storage: repacked, decayed, shared, left behind, or cast."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch
from torch import Tensor

from tests.baselines.quantised import RightLayer, RightPacked, target_of
from tests.known_bad import breaks
from tests.known_bad.quantised.forward import wrong


def scales_of(layer: Any) -> dict[str, Tensor]:
    """The floating point fields of a layer, which are buffers."""
    return {name: t for name, t in layer._buffers.items() if t is not None and name.startswith("weight_")
            and t.is_floating_point()}  # fmt: skip


class AfterPatching(RightPacked):
    """A target whose patched layers `spoil` changes."""

    def patch_linear_module(self, orig_linear: Any, *arguments: Any, **options: Any) -> Any:
        layer = super().patch_linear_module(orig_linear, *arguments, **options)
        self.spoil(layer)
        return layer

    def spoil(self, layer: Any) -> None:
        raise NotImplementedError


@breaks("QNT-KEEP-STEPS", says="of the storage requires grad", source="scales registered as parameters")
class TrainsItsScales(AfterPatching):
    def spoil(self, layer: Any) -> None:
        for scale in scales_of(layer).values():
            scale.requires_grad_()


@wrong("QNT-KEEP-STEPS", says="with weight decay changed", source="scales that follow the data, as running ranges do")
class MovesItsScalesInTraining(RightLayer):
    def base(self, x: Tensor) -> Tensor:
        y = super().base(x)
        if torch.is_grad_enabled() and self.training:
            with torch.no_grad():
                for scale in scales_of(self).values():
                    scale.data.mul_(1.0 + 2**-6)
        return y


@wrong("QNT-KEEP-STEPS", says="after two steps", source="a cache filled before the first step")
class ComputesWithTheFirstAdapter(RightLayer):
    def update(self, x: Tensor) -> Tensor:
        if "first" not in vars(self):
            self.__dict__["first"] = self.lora_A.weight.detach().clone(), self.lora_B.weight.detach().clone()
        down, up = self.first
        with torch.no_grad():
            stale = (x.to(down.dtype) @ down.T @ up.T) * self.scale - super().update(x)
        return super().update(x) + stale


class Repacks(RightLayer):
    """A layer that exchanges the halves of its bytes when `turns` says so, and back at the next call that does not."""

    turned = False

    def turns(self) -> bool:
        return not self.training and not torch.is_grad_enabled()

    def base(self, x: Tensor) -> Tensor:
        if self.turns() != self.turned:
            self.weight.data.copy_(self.weight.data << 4 | self.weight.data >> 4)
            self.__dict__["turned"] = self.turns()
        return super().base(x)


@wrong("QNT-KEEP-MODES", says="a call under no_grad in eval mode changed",
       source="bitsandbytes-foundation/bitsandbytes #2078: an eval forward repacks the weight")  # fmt: skip
class RepacksForInference(Repacks):
    pass


class NeverTurnsBack(Repacks):
    def turns(self) -> bool:
        return self.turned or super().turns()


@breaks("QNT-KEEP-MODES", says="numbers that the storage stands for", source="the other layout is read as the first")
class DeclaresThatItRepacksAndGetsOtherNumbers(target_of(NeverTurnsBack)):  # type: ignore[misc]
    CONFORMANCE: ClassVar[dict[str, Any]] = {"features": {"packed_storage": "repacked"}}


@wrong("QNT-KEEP-MODES", says="dX after calls in every mode", source="inference that leaves a flag behind")
class LosesTheGraphAfterInference(RightLayer):
    inferred = False

    def base(self, x: Tensor) -> Tensor:
        if torch.is_inference_mode_enabled():
            self.__dict__["inferred"] = True
        if self.inferred:
            with torch.no_grad():
                y = super().base(x)
            return y.detach().clone()
        return super().base(x)


@wrong("QNT-KEEP-COPY", says="shares the memory of", source="a __deepcopy__ that copies only the adapter")
class CopiesOnlyTheAdapter(RightLayer):
    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        for tensor in (self.weight, *scales_of(self).values()):
            memo[id(tensor)] = tensor
        return copy._reconstruct(self, memo, *self.__reduce_ex__(4))  # type: ignore[attr-defined]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return super().__reduce_ex__(protocol)


@wrong("QNT-KEEP-COPY", says="pickle in the copy changed", source="a state that is written in 16 bits")
class PicklesItsScalesInHalf(RightLayer):
    def __getstate__(self) -> Any:
        state = copy.copy(super().__getstate__())
        state["_buffers"] = dict(state["_buffers"])
        for name, scale in scales_of(self).items():
            state["_buffers"][name] = scale.to(torch.bfloat16).to(scale.dtype) * 0.5
        return state


@wrong(
    "QNT-KEEP-LOAD", says="load_state_dict(…, assign=", source="scales in no buffer, as quant_state in early releases"
)
class KeepsItsOwnScales(RightLayer):
    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        own = {prefix + name: scale.clone() for name, scale in scales_of(self).items()}
        super()._load_from_state_dict({**state_dict, **own}, prefix, *args)


@wrong("QNT-KEEP-LOAD", says="of the storage requires grad", source="assign=True makes new Parameters")
class ThawsWhatItLoads(RightLayer):
    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        for scale in scales_of(self).values():
            scale.requires_grad_()


@wrong("QNT-KEEP-TO", says="layer.", source="a cast of every floating point tensor", phrase="casts its scales")
class CastsItsScales(RightLayer):
    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        before = {name: scale.detach().clone() for name, scale in scales_of(self).items()}
        layer = super()._apply(fn, recurse)
        for name, scale in before.items():
            getattr(layer, name).data.copy_(fn(scale).to(torch.bfloat16).to(scale.dtype) * 1.0078125)
        return layer


@wrong("QNT-KEEP-TO", says="expected torch.float", source="a packed layer that ignores every cast")
class IgnoresCasts(RightLayer):
    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        return self
