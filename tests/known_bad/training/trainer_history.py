"""Known-bad twins of a trainer's history: a line has another loss or norm, or lines are missing."""

from __future__ import annotations

import reference
from tests.baselines.training import trainer_breaks as breaks


@breaks("TRN-TRAINER-HISTORY", says="loss of step")
class LogsTheSumOfTheLosses(reference.LoraTrainer):
    def _record(self, **values):
        if "loss" in values:
            values["loss"] *= self.lora_training_module.gradient_accumulation_steps
        super()._record(**values)


@breaks("TRN-TRAINER-HISTORY", says="grad_norm of step")
class LogsTheClippedNorm(reference.LoraTrainer):
    def _record(self, **values):
        limit = self.lora_training_module.max_grad_norm
        if values.get("grad_norm") is not None and limit is not None:
            values["grad_norm"] = min(values["grad_norm"], limit)
        super()._record(**values)


@breaks("TRN-TRAINER-HISTORY", says="history has lines of (epoch, step)")
class CountsEpochsFromZero(reference.LoraTrainer):
    def _record(self, **values):
        super()._record(**values)
        self.history[-1]["epoch"] -= 1


@breaks("TRN-TRAINER-HISTORY", says="history has lines of (epoch, step)")
class LogsNoShortWindow(reference.LoraTrainer):
    def _train_on(self, window, fhe):
        lines = len(self.history)
        super()._train_on(window, fhe)
        if len(window) < self.lora_training_module.gradient_accumulation_steps:
            del self.history[lines:]
