"""Known-bad twins of the layer as a module: construction, state, copies, modes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.baselines.layer import Layer
from tests.baselines.linear import Right
from tests.known_bad import breaks, record


def twin(clause: str, **options: Any) -> Any:
    """Register a layer class as a known-bad twin."""

    def register(kind: type[Layer]) -> type[Layer]:
        record(kind.__name__, Right(kind), clause, groups=("layer",), **options)
        return kind

    return register


@breaks(
    "LAY-SCALING",
    says="expected",
    groups=("layer",),
    source="NVIDIA/TensorRT-LLM #1668, exllamav2 #619 (SC2)",
)
class IgnoresRsLora(Right):
    def scaling(self, alpha: float, dim: int, use_rslora: bool) -> float:
        return alpha / dim


@breaks(
    "LAY-INIT",
    says="standard deviation",
    groups=("layer",),
    source="NVIDIA-NeMo/Automodel, an older release: A from U(0, 1)",
)
class FillsAFromTheUnitInterval(Right):
    def initialise(self, lora_A: Tensor, lora_B: Tensor, method: str) -> None:
        super().initialise(lora_A, lora_B, method)
        nn.init.uniform_(lora_A)


@breaks("LAY-INIT", says="kurtosis", groups=("layer",), source="xavier_uniform_ for xavier_normal_")
class DrawsXavierUniformly(Right):
    def initialise(self, lora_A: Tensor, lora_B: Tensor, method: str) -> None:
        super().initialise(lora_A, lora_B, method)
        if method == "xavier":
            nn.init.xavier_uniform_(lora_A)


@breaks("LAY-FRESH", says="worst", groups=("layer",), source="B initialised like A")
class StartsWithNonZeroB(Right):
    def initialise(self, lora_A: Tensor, lora_B: Tensor, method: str) -> None:
        super().initialise(lora_A, lora_B, method)
        nn.init.normal_(lora_B)


@breaks("LAY-DEFAULTS", says="by default", groups=("layer",), source="a default stated in two places")
class HasRankSixteenByDefault(Right):
    def LinearLoRA(self, orig_linear: nn.Linear, dim: int = 16, alpha: float = 32, *args: Any, **options: Any) -> Any:
        return super().LinearLoRA(orig_linear, dim, alpha, *args, **options)


@breaks("LAY-BIAS", says="worst", groups=("layer",), source="the bias gradient averaged over tokens")
class AveragesTheBiasGradient(Right):
    def gradient_of_bias(self, g: Tensor) -> Tensor:
        return g.mean(0)


@twin("LAY-FREEZE", says="weight requires grad", source="huggingface/peft #2936 (FZ1)")
class TrainsTheBase(Layer):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.weight.requires_grad_(True)


@twin(
    "LAY-TRAIN",
    says="constant ratio",
    source="NVIDIA-NeMo/Automodel (DR2) turned round: eval() cannot be undone",
)
class StaysInEvaluation(Layer):
    def train(self, mode: bool = True) -> Any:
        self.evaluated = getattr(self, "evaluated", False) or not mode
        return super().train(mode and not self.evaluated)


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


@twin("LAY-COPY", says="raised", source="a lambda kept on the layer")
class CannotBePickled(Layer):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.hook = lambda x: x


@twin("LAY-TO", says="raised", dtypes=("bfloat16",), source="a dtype remembered from construction")
class RemembersItsFirstDtype(Layer):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.kind = self.weight.dtype

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != self.kind:
            raise RuntimeError(f"expected {self.kind}, got {x.dtype}")
        return super().forward(x)


@twin("LAY-MEMORY-EFFICIENT", says="worst", source="S recomputed without the scale")
class RecomputesWithoutTheScale(Layer):
    def forward(self, x: Tensor) -> Tensor:
        scale, self.scale = self.scale, 1.0 if self.memory_efficient else self.scale
        y = super().forward(x)
        self.scale = scale
        return y


@twin("LAY-MEMORY-EFFICIENT", says="⟨d", source="a mask drawn again in place of the forward's")
class RecomputesWithANewMask(Layer):
    def forward(self, x: Tensor) -> Tensor:
        if not self.memory_efficient:
            return super().forward(x)
        y: Tensor = checkpoint(super().forward, x, use_reentrant=False, preserve_rng_state=False)
        torch.rand(1)
        return y
