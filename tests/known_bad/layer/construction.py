"""Known-bad twins of construction: a layer is constructed with a wrong scale, initialisation, rank or mode."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tests.baselines.layer import Layer
from tests.baselines.linear import Right
from tests.known_bad import breaks
from tests.known_bad.layer.registration import twin


@breaks("LAY-SCALING", says="expected", source="the rank-stabilised scale for every layer")
class AlwaysDividesByTheRoot(Right):
    def scaling(self, alpha: float, dim: int, use_rslora: bool) -> float:
        return alpha / dim**0.5


@breaks("LAY-SCALING", says="scale is 1 for alpha", source="lora-pytorch 0.2.0: alpha goes into the initialisation")
class IgnoresAlpha(Right):
    def scaling(self, alpha: float, dim: int, use_rslora: bool) -> float:
        return 1.0


@breaks(
    "LAY-RSLORA",
    says="expected",
    source="NVIDIA/TensorRT-LLM #1668, exllamav2 #619 (SC2)",
)
class IgnoresRsLora(Right):
    def scaling(self, alpha: float, dim: int, use_rslora: bool) -> float:
        return alpha / dim


@breaks(
    "LAY-INIT",
    says="standard deviation",
    source="NVIDIA-NeMo/Automodel, an older release: A from U(0, 1)",
)
class FillsAFromTheUnitInterval(Right):
    def initialise(self, lora_A: Tensor, lora_B: Tensor, method: str) -> None:
        super().initialise(lora_A, lora_B, method)
        nn.init.uniform_(lora_A)


@breaks("LAY-INIT", says="kurtosis", source="xavier_uniform_ in place of xavier_normal_")
class DrawsXavierUniformly(Right):
    def initialise(self, lora_A: Tensor, lora_B: Tensor, method: str) -> None:
        super().initialise(lora_A, lora_B, method)
        if method == "xavier":
            nn.init.xavier_uniform_(lora_A)


@breaks("LAY-FRESH", says="worst", source="B initialised like A")
class StartsWithNonZeroB(Right):
    def initialise(self, lora_A: Tensor, lora_B: Tensor, method: str) -> None:
        super().initialise(lora_A, lora_B, method)
        nn.init.normal_(lora_B)


@breaks("LAY-DEFAULTS", says="by default", source="a default defined in two places")
class HasRankSixteenByDefault(Right):
    def LinearLoRA(self, orig_linear: nn.Linear, *args: Any, **options: Any) -> Any:
        return super().LinearLoRA(orig_linear, *args, **options if args else {"dim": 16, **options})


@breaks("LAY-BIAS", says="worst", source="the bias gradient averaged over tokens")
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
    says="as if dropout had not acted",
    source="NVIDIA-NeMo/Automodel (DR2) reversed: eval() cannot be undone",
)
class StaysInEvaluation(Layer):
    def train(self, mode: bool = True) -> Any:
        self.evaluated = getattr(self, "evaluated", False) or not mode
        return super().train(mode and not self.evaluated)
