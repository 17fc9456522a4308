"""Known-bad twins of trainer schedules: a learning rate is left out, or comes twice."""

from __future__ import annotations

import reference
from tests.baselines.training import trainer_breaks as breaks


@breaks("TRN-TRAINER-SCHEDULE", says="had the learning rates")
class StepsTheSchedulerAfterEachBatch(reference.LoraTrainer):
    def _train_on(self, window, fhe):
        super()._train_on(window, fhe)
        scheduler = self.lora_training_module.lr_scheduler
        for _ in window[1:] if scheduler is not None else ():
            scheduler.step()


@breaks("TRN-TRAINER-SCHEDULE", says="had the learning rates")
class SkipsTheSchedulerAfterAShortWindow(reference.LoraTrainer):
    def _train_on(self, window, fhe):
        training = self.lora_training_module
        scheduler = training.lr_scheduler
        if len(window) < training.gradient_accumulation_steps:
            training.lr_scheduler = None
        super()._train_on(window, fhe)
        training.lr_scheduler = scheduler


@breaks("TRN-TRAINER-SCHEDULE", says="had the learning rates")
class StepsTheSchedulerOnceAnEpoch(reference.LoraTrainer):
    def train(self, train_loader, num_epochs=10, fhe="simulate", device="cpu"):
        training = self.lora_training_module
        scheduler, training.lr_scheduler = training.lr_scheduler, None
        while self.epoch < num_epochs:
            super().train(train_loader, self.epoch + 1, fhe, device)
            if scheduler is not None:
                scheduler.step()
        training.lr_scheduler = scheduler
