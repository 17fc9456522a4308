"""Known-bad twins of state: a layer saves, copies or converts the wrong tensors, at first or after use."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.baselines.conventions import HoldsALambda, OwnNames, declaring
from tests.baselines.layer import Layer
from tests.known_bad import record
from tests.known_bad.layer.registration import twin


@twin("LAY-STATE", says="worst", source="the adapter left out of the checkpoint")
class DoesNotSaveB(Layer):
    def state_dict(self, *args: Any, **options: Any) -> Any:
        found = super().state_dict(*args, **options)
        return {name: value for name, value in found.items() if not name.startswith("lora_B")}

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        return super().load_state_dict(state_dict, strict=False, assign=assign)


@twin(
    "LAY-STATE-NAMES",
    says="state_dict has the keys",
    dtypes=("float32",),
    source="huggingface/peft #3282 (SD1)",
)
class KeepsAnExtraTensor(Layer):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.register_buffer("scaling", torch.ones(()))


@twin("LAY-COPY", says="changing the copy", source="a cache shared by copies")
class SharesItsAdapterWithCopies(Layer):
    def __deepcopy__(self, memo: Any) -> Any:
        other = Layer.__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other


class NamesItsTensorsAndKeepsOneMore(KeepsAnExtraTensor, OwnNames):
    """A layer with names of its own and a tensor that is no parameter of a LoRA layer."""


record(
    "KeepsAnExtraTensorUnderNamesOfItsOwn",
    declaring(NamesItsTensorsAndKeepsOneMore, state_names="other"),
    "LAY-STATE-NAMES",
    says="expected one tensor each for W, b, lora_A and lora_B",
    dtypes=("float32",),
    source="huggingface/peft #3282 (SD1)",
)
record(
    "NamesItsTensorsOtherwise",
    declaring(OwnNames),
    "LAY-STATE-NAMES",
    says='(declare the feature state_names as "other" if it is meant)',
    dtypes=("float32",),
    source="other names, not declared",
    phrase="has other names in its state_dict",
)
twin("LAY-PICKLE", says="raised", source="a lambda stored on the layer")(HoldsALambda)


@twin("LAY-PICKLE", says="worst", source="a scale left out of __getstate__")
class PicklesWithoutItsScale(Layer):
    def __getstate__(self) -> Any:
        return {**self.__dict__, "scale": 1.0}


@twin("LAY-TO", says="raised", dtypes=("bfloat16",), source="a dtype remembered from construction")
class RemembersItsFirstDtype(Layer):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.kind = self.weight.dtype

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != self.kind:
            raise RuntimeError(f"expected {self.kind}, got {x.dtype}")
        return super().forward(x)
