"""Right but different layers, models and training runs for lives."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

import reference
from tests.baselines.life import LivedLayer
from tests.baselines.life_run import LivedRun, LivedTraining
from tests.baselines.lived_model import AdaptedByParts, LivedModel, SavedByParts
from tests.known_bad.life.kept_weights import KeepsTheAdaptedWeight
from tests.known_bad.life.late_backward import ByNode


class KeepsNothingTwice(LivedLayer):
    """Computes the weight of every call, as `x (W + s·B A)ᵀ`."""

    def adapted(self, x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scale: float) -> Tensor:
        if self.training and self.dropout_p == 1.0:
            return super().adapted(x, weight, bias, A, B, scale)
        return torch.nn.functional.linear(x, weight + (B @ A * scale).to(weight.dtype), bias)


class CountsVersions(KeepsTheAdaptedWeight):
    """Keeps the adapted weight of inference by everything that it depends on."""


class Recomputes(LivedLayer):
    """Computes the update again in backward."""

    def update(self, x: Tensor, A: Tensor, B: Tensor, scale: float) -> Tensor:
        y: Any = torch.utils.checkpoint.checkpoint(super().update, x, A, B, scale, use_reentrant=False)
        return y  # type: ignore[no-any-return]


class AccumulatesByHand(LivedTraining):
    """Takes gradients from autograd and adds them itself."""

    def _backward(self, loss: Tensor) -> None:
        trainable = [p for p in self.inference_model.parameters() if p.requires_grad]
        for parameter, gradient in zip(trainable, torch.autograd.grad(loss, trainable), strict=True):
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient


class ZeroesInPlace(LivedTraining):
    """Keeps the tensors of its gradients, and clips by torch's own function."""

    def zero(self) -> None:
        self.inference_model.zero_grad(set_to_none=False)

    def clipped(self) -> Tensor | None:
        if self.max_grad_norm is None:
            return None
        trained = [p for p in self.inference_model.parameters() if p.requires_grad]
        return torch.nn.utils.clip_grad_norm_(trained, self.max_grad_norm)


class SavesTheMergedWeight(reference.LinearLoRA):
    """Has the merged weight in its state_dict while it is merged."""

    def _save_to_state_dict(self, *args: Any) -> None:
        torch.nn.Linear._save_to_state_dict(self, *args)


class SavesMergedWeights(LivedModel):
    """Such layers, and models of them."""

    CONFORMANCE: Any = {"features": {"merged_state": "merged"}}  # noqa: RUF012
    LinearLoRA: Any = SavesTheMergedWeight
    layer = SavesTheMergedWeight


LAYERS: tuple[Any, ...] = (LivedLayer, ByNode, KeepsNothingTwice, CountsVersions, Recomputes)
MODELS: tuple[Any, ...] = (LivedModel, AdaptedByParts, SavedByParts, SavesMergedWeights)
RUNS: tuple[Any, ...] = (LivedTraining, AccumulatesByHand, ZeroesInPlace)

VARIANTS: dict[str, Any] = {
    **{kind.__name__: SimpleNamespace(LinearLoRA=kind) for kind in LAYERS},
    **{kind.__name__: kind() for kind in MODELS},
    **{kind.__name__: type(kind.__name__, (LivedRun,), {"LoraTraining": kind})() for kind in RUNS},
}
