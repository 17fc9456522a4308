"""Known-bad twins of trainers that divide a window's loss by its labels: they count others."""

from __future__ import annotations

import reference
from tests.baselines.training import RightTrainer
from tests.known_bad import record


class PerItem(reference.LoraTrainer):
    """A trainer that divides the loss of each batch by the labels of the window; a twin counts them wrongly."""

    def _train_on(self, window, fhe):
        training = self.lora_training_module
        given, factor = training.loss_fn, len(window) / self.items(window)
        object.__setattr__(training, "loss_fn", lambda out, labels: given(out, labels) * factor)
        try:
            super()._train_on(window, fhe)
        finally:
            object.__setattr__(training, "loss_fn", given)

    def items(self, window):
        return sum(labels.numel() for _, labels in window)


def breaks(kind):
    """Register a subclass as a known-bad twin, with the convention declared."""
    declared = {"LoraTrainer": kind, "CONFORMANCE": {"features": {"window_loss": "items"}}}
    target = type(kind.__name__, (RightTrainer,), declared)()
    record(kind.__name__, target, "TRN-TRAINER-ITEMS", groups=("training",), says="gradient of", dtypes=("float32",))
    return kind


@breaks
class CountsTheLabelsOfTheFirstBatch(PerItem):
    """Each batch is taken for as long as the first."""

    def items(self, window):
        return len(window) * window[0][1].numel()


@breaks
class CountsRowsInPlaceOfLabels(PerItem):
    def items(self, window):
        return sum(len(labels) for _, labels in window)


@breaks
class CountsAShortWindowAsAFullOne(PerItem):
    def items(self, window):
        return super().items(window) * self.lora_training_module.gradient_accumulation_steps // len(window)


@breaks
class AveragesTheMeansOfTheBatches(PerItem):
    """What a trainer of the other convention does with a loss that is a mean."""

    def _train_on(self, window, fhe):
        training = self.lora_training_module
        given = training.loss_fn
        object.__setattr__(training, "loss_fn", lambda out, labels: given(out, labels) / labels.numel())
        try:
            reference.LoraTrainer._train_on(self, window, fhe)
        finally:
            object.__setattr__(training, "loss_fn", given)
