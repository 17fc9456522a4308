"""Known-bad twins of optimiser step: a call clips, steps, schedules and zeroes in a wrong order."""

from __future__ import annotations

import torch
from torch import nn

from tests.baselines.training import Step, step_breaks
from tests.baselines.training import step_breaks as breaks


@step_breaks("TRN-SIDE-GLOBAL", says="a call changed grad mode from True to False")
class LeavesGradModeOff(Step):
    def finish(self) -> None:
        super().finish()
        torch.set_grad_enabled(False)


@breaks("TRN-STEP", says="expected one step", dtypes=("float32", "bfloat16"))
class NeverSteps(Step):
    def step(self):
        pass


@breaks("TRN-STEP", says="expected one step", dtypes=("float32", "bfloat16"))
class StepsTwice(Step):
    def step(self):
        self.optimizer.step()
        super().step()


@breaks("TRN-STEP", says="without gradients")
class ZeroesBeforeTheStep(Step):
    def clip(self):
        super().clip()
        self.zero()


@breaks("TRN-STEP", says="after a step")
class StepsOnHalfTheGradient(Step):
    def step(self):
        for p in self.inference_model.parameters():
            if p.grad is not None:
                p.grad.mul_(0.5)
        super().step()


@breaks("TRN-SCHEDULE", says="expected ['optimizer.step', 'lr_scheduler.step']")
class SchedulesBeforeTheStep(Step):
    def step(self):
        if self.lr_scheduler is not None:
            self.lr_scheduler.step()
        if self.optimizer is not None:
            self.optimizer.step()


@breaks("TRN-SCHEDULE", says="expected ['optimizer.step', 'lr_scheduler.step']")
class ForgetsTheScheduler(Step):
    def step(self):
        if self.optimizer is not None:
            self.optimizer.step()


@breaks("TRN-ZERO", says="still has its gradient")
class KeepsGradientsAfterTheStep(Step):
    def zero(self):
        if self.calibrate:
            super().zero()


@breaks("TRN-CLIP", says="after a step", dtypes=("float32", "bfloat16"))
class ClipsAfterTheStep(Step):
    def clip(self):
        pass

    def step(self):
        super().step()
        super().clip()


@breaks("TRN-CLIP", says="after a step", source="paiml/entrenar #311 (GN4)", dtypes=("float32", "bfloat16"))
class ClipsBySquaredNorm(Step):
    def clip(self):
        super().clip()
        if self.norm is not None and self.norm > self.max_grad_norm:
            for p in self.inference_model.parameters():
                if p.grad is not None:
                    p.grad.div_(self.norm + 1)


@breaks("TRN-NORM", says="grad_norm", dtypes=("float32", "bfloat16"))
class ReturnsTheClippedNorm(Step):
    def clip(self):
        super().clip()
        if self.norm is not None:
            self.norm = self.norm.clamp(max=self.max_grad_norm)


@breaks("TRN-NORM", says="grad_norm is None although")
class KeepsTheNormToItself(Step):
    def clip(self):
        super().clip()
        self.norm = None


@breaks("TRN-NORM-NONE", says="raised TypeError")
class NeedsALimit(Step):
    def clip(self):
        self.max_grad_norm = float(self.max_grad_norm)
        super().clip()


@breaks("TRN-NORM-NONE", says="without max_grad_norm: expected None")
class ClipsToOneByDefault(Step):
    def clip(self):
        limit, self.max_grad_norm = self.max_grad_norm, self.max_grad_norm or 1.0
        super().clip()
        self.max_grad_norm = limit


@breaks("TRN-NORM-RANGE", says="got inf", source="NVIDIA-NeMo/Automodel f85d2ba86 (#3136) (GN1)")
class SquaresInFloat32(Step):
    def clip(self):
        if self.max_grad_norm is not None:
            self.norm = nn.utils.clip_grad_norm_(self.inference_model.parameters(), self.max_grad_norm)


@breaks("TRN-NO-OPTIMISER", says="raised AttributeError")
class NeedsAScheduler(Step):
    def step(self):
        self.optimizer.step()
        self.lr_scheduler.step()


@breaks("TRN-LOOP", says="after 4 calls", dtypes=("float64",), source="ms-swift #10084 (TR3) reversed")
class ForgetsTheFirstMicroBatch(Step):
    def differentiate(self, loss):
        self.calls = getattr(self, "calls", 0) + 1
        if self.calls == 3:
            self.zero()
            loss = loss * 0.5
        super().differentiate(loss)
