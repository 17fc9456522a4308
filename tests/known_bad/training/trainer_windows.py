"""Known-bad twins of trainer windows: the last window is lost or weighted wrongly, or nothing is clipped."""

from __future__ import annotations

import reference
from tests.baselines.training import trainer_breaks as breaks


@breaks("TRN-TRAINER-WINDOWS", says="gradient of", source="zama-ai/concrete-ml 1.9 LoraTrainer: the last window")
class DividesAShortWindowByTheFullNumber(reference.LoraTrainer):
    def _train_on(self, window, fhe):
        training = self.lora_training_module
        short = training.gradient_accumulation_steps / len(window)
        given = training.loss_fn
        object.__setattr__(training, "loss_fn", lambda out, labels: given(out, labels) / short)
        try:
            super()._train_on(window, fhe)
        finally:
            object.__setattr__(training, "loss_fn", given)


@breaks("TRN-TRAINER-WINDOWS", says="steps: expected")
class DropsAShortWindow(reference.LoraTrainer):
    def _train_on(self, window, fhe):
        if len(window) == self.lora_training_module.gradient_accumulation_steps:
            super()._train_on(window, fhe)


@breaks("TRN-TRAINER-WINDOWS", says="steps: expected")
class StepsAfterEachBatch(reference.LoraTrainer):
    def _train_on(self, window, fhe):
        for batch in window:
            super()._train_on([batch], fhe)


@breaks("TRN-TRAINER-WINDOWS", says="gradient of")
class ClipsNothing(reference.LoraTrainer):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.lora_training_module.max_grad_norm = None


@breaks("TRN-TRAINER-WINDOWS", says="gradient of")
class CarriesAShortWindowOver(reference.LoraTrainer):
    """The batches that are left at the end of an epoch count for its step, and again for the next one."""

    def train(self, train_loader, num_epochs=10, fhe="simulate", device="cpu"):
        self.left = []
        super().train(train_loader, num_epochs, fhe, device)

    def _train_on(self, window, fhe):
        full = self.lora_training_module.gradient_accumulation_steps
        joined, self.left = [*self.left, *window], [] if len(window) == full else window
        super()._train_on(joined, fhe)
