"""Known-bad twins of state: the state of a DoRA layer lacks the magnitude."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.baselines.layer import Layer
from tests.known_bad.dora.registration import twin


@twin("DORA-STATE", says="worst    y", source="the magnitude left out of the checkpoint")
class DoesNotSaveTheMagnitude(Layer):
    def state_dict(self, *args: Any, **options: Any) -> Any:
        found = super().state_dict(*args, **options)
        return {name: value for name, value in found.items() if name != "lora_magnitude"}

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        return super().load_state_dict(state_dict, strict=False, assign=assign)


@twin("DORA-STATE", says="raised RuntimeError", source="the last step's norm kept on the layer with its graph")
class CannotBeCopiedAfterUse(Layer):
    def dora(self, x: Tensor) -> Tensor:
        self.last = self.factor()
        return super().dora(x)


@twin("DORA-PICKLE", says="worst    y", source="a magnitude left out of __getstate__")
class PicklesWithoutTheMagnitude(Layer):
    def __getstate__(self) -> Any:
        state = dict(self.__dict__)
        if self.use_dora:
            fresh = torch.nn.Parameter(torch.ones_like(self.lora_magnitude))
            state["_parameters"] = {**state["_parameters"], "lora_magnitude": fresh}
        return state


@twin("DORA-TO", says="lora_magnitude has dtype", dtypes=("bfloat16",), source="a magnitude that keeps its own dtype")
class KeepsTheMagnitudesDtype(Layer):
    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        magnitude = self.lora_magnitude.data if self.use_dora else None
        super()._apply(fn, recurse)
        if magnitude is not None:
            self.lora_magnitude.data = magnitude
        return self
