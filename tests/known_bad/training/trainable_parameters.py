"""Known-bad twins of trainable parameters: a call mishandles trainable parameters other than adapters."""

from __future__ import annotations

import torch

import reference
from tests.baselines.training import Step
from tests.baselines.training import step_breaks as breaks

DOUBLE = ("float64",)


@breaks("TRN-ALL-TRAINABLE", says="still has its gradient after the step", dtypes=DOUBLE)
class ZeroesWhatTheOptimiserHolds(Step):
    def zero(self):
        if self.calibrate or self.optimizer is None:
            super().zero()
        else:
            self.optimizer.zero_grad()


class Clips(Step):
    """A step that clips only the parameters of `clipped`."""

    def clipped(self):
        raise NotImplementedError

    def clip(self):
        if self.max_grad_norm is not None:
            self.norm = reference.clip_grad_norm_(self.clipped(), self.max_grad_norm)


@breaks("TRN-ALL-TRAINABLE", says="worst    grad_norm", dtypes=DOUBLE)
class ClipsTheFirstGroup(Clips):
    def clipped(self):
        groups = getattr(self.optimizer, "param_groups", None)
        return groups[0]["params"] if groups else self.inference_model.parameters()


@breaks("TRN-ALL-TRAINABLE", says="worst    grad_norm", dtypes=DOUBLE)
class ClipsAdapters(Clips):
    def clipped(self):
        return [p for name, p in self.inference_model.named_parameters() if "lora_" in name]


@breaks("TRN-ALL-TRAINABLE", says="worst    grad_norm", dtypes=DOUBLE)
class FreezesWhatIsNoAdapter(Step):
    def __init__(self, inference_model):
        super().__init__(inference_model)
        for name, parameter in inference_model.named_parameters():
            if "lora_" not in name:
                parameter.requires_grad_(False)


@breaks("TRN-ALL-TRAINABLE", says="of a call that did not clip", dtypes=DOUBLE)
class ReturnsTheLastNorm(Step):
    last = None

    def forward(self, inputs):
        """Run backward and return the loss with the last norm."""
        loss, norm = super().forward(inputs)
        self.last = self.last if norm is None else norm
        return loss, self.last


@breaks("TRN-ALL-TRAINABLE", says="called the model 2 times", dtypes=DOUBLE)
class TriesTheModelFirst(Step):
    def run_model(self, x, **labels):
        with torch.no_grad():
            super().run_model(x, **labels)
        return super().run_model(x, **labels)


@breaks("TRN-ALL-TRAINABLE", says="raised", dtypes=DOUBLE)
class TakesTheLossFunctionFirst(Step):
    def update_training_parameters(self, loss_fn=None, optimizer=None, lr_scheduler=None, training_args=None):
        super().update_training_parameters(optimizer, lr_scheduler, loss_fn, training_args)


@breaks("TRN-MODES", says="a call set the training flags")
class PutsTheModelInTraining(Step):
    def run_model(self, x, **labels):
        self.inference_model.train()
        return super().run_model(x, **labels)


@breaks("TRN-MODES", says="making a LoraTraining set the training flags")
class StartsInTraining(Step):
    def __init__(self, inference_model):
        super().__init__(inference_model)
        self.train()


@breaks("TRN-MODES", says="a call set the training flags")
class CalibratesInEvaluation(Step):
    def run_model(self, x, **labels):
        if self.calibrate:
            self.inference_model.eval()
        return super().run_model(x, **labels)
