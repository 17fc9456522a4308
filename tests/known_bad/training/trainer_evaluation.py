"""Known-bad twins of trainer evaluation: it returns a wrong loss, or the run is another one afterwards."""

from __future__ import annotations

import torch

import reference
from tests.baselines.training import trainer_breaks as breaks


class Unprotected(reference.LoraTrainer):
    """A trainer whose evaluation restores modes only, as its twins override it."""

    def evaluate(self, fhe=None):
        training = self.lora_training_module
        modes = {module: module.training for module in training.modules()}
        self.enter(training)
        with torch.no_grad():
            found = self._metric(training)
        self.leave(training, modes)
        return {key: float(value) for key, value in found.items()}

    def enter(self, training):
        training.eval()

    def leave(self, _, modes):
        for module, mode in modes.items():
            module.training = mode


@breaks("TRN-TRAINER-EVAL", says="random state")
@breaks("TRN-TRAINER-EVAL-RUN", says="a run that was evaluated beside one that was not")
class DrawsRandomNumbers(Unprotected):
    """A shuffled loader draws from torch's generator, and what it drew is not undone."""


@breaks("TRN-TRAINER-EVAL", says="in another mode")
class TrainsThePartsThatWereNotTrained(reference.LoraTrainer):
    def evaluate(self, fhe=None):
        found = super().evaluate(fhe)
        self.lora_training_module.train()
        return found


@breaks("TRN-TRAINER-EVAL-RUN", says="a run that was evaluated beside one that was not")
class StaysInEvaluationMode(reference.LoraTrainer):
    def evaluate(self, fhe=None):
        found = super().evaluate(fhe)
        self.lora_training_module.eval()
        return found


@breaks("TRN-TRAINER-EVAL", says="eval_loss")
class EvaluatesWithDropout(reference.LoraTrainer):
    def _metric(self, training):
        training.train()
        return super()._metric(training)


@breaks("TRN-TRAINER-EVAL", says="eval_loss")
class SumsTheLosses(reference.LoraTrainer):
    def _metric(self, training):
        return {"eval_loss": super()._metric(training)["eval_loss"] * len(self.eval_loader)}


@breaks("TRN-TRAINER-EVAL", says="evaluate() changed the gradient of")
class ClearsGradients(reference.LoraTrainer):
    def evaluate(self, fhe=None):
        found = super().evaluate(fhe)
        self.lora_training_module.zero_grad()
        return found
