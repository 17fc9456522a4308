"""A right training run for lives, split into small methods; twins override one of them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

import reference
from reference.step_state import StepState
from reference.training import _split
from tests.known_bad import record


class LivedTraining(reference.LoraTraining):
    """The reference's step, in parts.

    Attributes:
        kept: what a twin keeps from one call to the next.
    """

    kept: Any = None

    def forward(self, inputs: Any) -> tuple[Tensor, Tensor | None]:
        before = self.taken()
        try:
            loss = self.divided(self._loss(*_split(inputs)))
            self._backward(loss)
            return loss, self.finish(before)
        except BaseException:
            self.undo(before)
            raise

    def taken(self) -> StepState:
        """The state before the call."""
        before = StepState(self.inference_model)
        before.add_steppers(self.inference_model, self.optimizer, self.lr_scheduler)
        return before

    def undo(self, before: StepState) -> None:
        """Return to the state before the call."""
        before.restore()

    def divided(self, loss: Tensor) -> Tensor:
        """The loss of a micro-batch of a window."""
        return loss / self.gradient_accumulation_steps

    def finish(self, before: StepState) -> Tensor | None:
        """Clear the gradients, or clip, step and clear them."""
        norm = None
        if self.calibrate:
            self.zero()
        elif self.run_optimizer:
            norm = self.clipped()
            self.step()
            self.zero()
        return norm

    def clipped(self) -> Tensor | None:
        """Clip the gradients; return the norm before."""
        if self.max_grad_norm is None:
            return None
        return reference.clip_grad_norm_(self.inference_model.parameters(), self.max_grad_norm)

    def step(self) -> None:
        """One step of optimiser and scheduler."""
        if self.optimizer is not None:
            self.optimizer.step()
        if self.lr_scheduler is not None:
            self.lr_scheduler.step()

    def zero(self) -> None:
        """Clear the gradients."""
        self.inference_model.zero_grad()


class LivedRun:
    """A target for lives of training runs."""

    LoraTraining: Any = LivedTraining
    HybridFHEModel: Any = reference.HybridFHEModel
    HybridFHEMode = reference.HybridFHEMode

    def save_training(self, training: Any, path: Any, step: int = 0) -> None:
        """Save a run."""
        reference.save_training(training, path, step)

    def load_training(self, training: Any, path: Any) -> int:
        """Load a run."""
        return reference.load_training(training, path)


PARTS = {"LoraTraining": LivedTraining, "HybridFHEModel": reference.HybridFHEModel}


def run_twin(clause: str, **options: Any) -> Any:
    """Return a decorator that registers a part of a target, or a whole target, as a known-bad twin."""

    def register(kind: type) -> type:
        part = next((name for name, right in PARTS.items() if issubclass(kind, right)), None)
        target = kind() if part is None else type(kind.__name__, (LivedRun,), {part: kind})()
        options.setdefault("dtypes", ("float32", "float64"))
        record(kind.__name__, target, clause, **options)
        return kind

    return register
