"""Known-bad twins of accumulation: micro-batches replace each other's gradients, or are weighted wrongly."""

from __future__ import annotations

from tests.baselines.training import Step
from tests.baselines.training import step_breaks as breaks


@breaks("TRN-ACCUMULATE", says="gradient of", dtypes=("float32", "bfloat16"))
class ReplacesTheGradient(Step):
    def differentiate(self, loss):
        self.zero()
        super().differentiate(loss)


@breaks("TRN-ACCUMULATE", says="although the optimiser is off", dtypes=("float32", "bfloat16"))
class AlwaysSteps(Step):
    def finish(self):
        super().finish()
        if not self.run_optimizer:
            self.step()


@breaks("TRN-ACCUMULATE", says="grad_norm is")
class AlwaysClips(Step):
    def finish(self):
        if not self.run_optimizer:
            self.clip()
        super().finish()


@breaks("TRN-BIG-BATCH", says="gradient of", dtypes=("float32", "bfloat16"))
class AveragesAsItGoes(Step):
    def differentiate(self, loss):
        super().differentiate(loss)
        for p in self.inference_model.parameters():
            if p.grad is not None:
                p.grad.mul_(0.5)


@breaks("TRN-UNEQUAL", says="equality required", source="pytorch/torchtune 23c8829ac (#1875) (TR1)")
class DividesByTheRows(Step):
    def loss(self, x, labels):
        first = getattr(self, "rows", len(labels))
        self.rows = len(labels)
        return super().loss(x, labels) * (first / self.rows)


@breaks("TRN-CALIBRATE", says="is left behind while calibrating", dtypes=("float32", "bfloat16"))
class KeepsCalibrationGradients(Step):
    def finish(self):
        if not self.calibrate:
            super().finish()


@breaks("TRN-CALIBRATE", says="was called while calibrating", dtypes=("float32", "bfloat16"))
class StepsWhileCalibrating(Step):
    def finish(self):
        calibrating, self.calibrate = self.calibrate, False
        super().finish()
        self.calibrate = calibrating
        if calibrating:
            self.zero()


@breaks("TRN-CALIBRATE-END", says="equality required")
class BringsCalibrationBack(Step):
    def zero(self):
        if self.calibrate:
            self.later = [(p, p.grad) for p in self.inference_model.parameters() if p.grad is not None]
        super().zero()

    def differentiate(self, loss):
        if not self.calibrate:
            for parameter, gradient in getattr(self, "later", ()):
                parameter.grad = gradient
            self.later = ()
        super().differentiate(loss)
