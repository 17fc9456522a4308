"""Known-bad twins of the lives of a training run: a call that forgets, or remembers too well, what came before it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import reference
from tests.baselines.life_run import LivedTraining
from tests.baselines.life_run import run_twin as twin


@twin("LIFE-RUN-STATE", says="after", source="max_norm compared with gradients of the undivided losses")
class ClipsBeforeTheDivision(LivedTraining):
    def clipped(self) -> Tensor | None:
        limit, steps = self.max_grad_norm, self.gradient_accumulation_steps
        if limit is None:
            return None
        return reference.clip_grad_norm_(self.inference_model.parameters(), limit / steps)


@twin("LIFE-RUN-STATE", says="after", source="pytorch/torchtune: the limit as a constant of the compiled step")
class KeepsTheFirstLimit(LivedTraining):
    def clipped(self) -> Tensor | None:
        if self.max_grad_norm is not None and self.kept is None:
            self.kept = self.max_grad_norm
        now, self.max_grad_norm = self.max_grad_norm, self.kept
        try:
            return super().clipped()
        finally:
            self.max_grad_norm = now


@twin("LIFE-RUN-LOSS", says="the loss after", source="huggingface/accelerate: the steps of the first window")
class DividesByTheFirstNumberOfSteps(LivedTraining):
    def divided(self, loss: Tensor) -> Tensor:
        self.kept = self.kept or self.gradient_accumulation_steps
        return loss / self.kept


@twin("LIFE-RUN-LOSS", says="the loss after", source="the loss function captured at the first call")
class KeepsTheFirstLoss(LivedTraining):
    def _loss(self, args: Any, kwargs: Any, labels: Any) -> Tensor:
        self.kept = self.kept or [self.loss_fn]
        return self.kept[0](self.inference_model(*args, **kwargs), labels)  # type: ignore[no-any-return]


@twin("LIFE-RUN-STATE", says="after", source="an optimiser that was prepared once stays")
class KeepsTheFirstOptimiser(LivedTraining):
    def step(self) -> None:
        self.kept = self.kept or [self.optimizer]
        self.optimizer, now = self.kept[0], self.optimizer
        super().step()
        self.optimizer = now


@twin("LIFE-RUN-STATE", says="after", source="steps every gradient_accumulation_steps calls, by its own count")
class CountsTheWindowItself(LivedTraining):
    def finish(self, before: Any) -> Tensor | None:
        self.kept = (self.kept or 0) + 1
        whole = self.run_optimizer and not self.calibrate and self.kept % self.gradient_accumulation_steps
        return None if whole else super().finish(before)


@twin("LIFE-RUN-STATE", says="after", source="eval() taken for a run without training")
class DoesNotStepInEval(LivedTraining):
    def step(self) -> None:
        if self.training:
            super().step()


@twin("LIFE-RUN-LOSS", says="the loss after", source="huggingface/transformers: training_step calls model.train()")
class TrainsInEval(LivedTraining):
    def _loss(self, args: Any, kwargs: Any, labels: Any) -> Tensor:
        self.inference_model.train()
        return super()._loss(args, kwargs, labels)


@twin("LIFE-RUN-STATE", says="after", source="gradients set aside during calibration")
class KeepsTheWindowWhileCalibrating(LivedTraining):
    def forward(self, inputs: Any) -> Any:
        before = [(p, p.grad if p.grad is None else p.grad.clone()) for p in self.inference_model.parameters()]
        result = super().forward(inputs)
        if self.calibrate:
            for parameter, gradient in before:
                parameter.grad = gradient
        return result


@twin("LIFE-RUN-STATE", says="after", source="the scheduler steps once for each call")
class SchedulesWhileCalibrating(LivedTraining):
    def finish(self, before: Any) -> Tensor | None:
        if self.calibrate and self.run_optimizer and self.lr_scheduler is not None:
            self.lr_scheduler.step()
        return super().finish(before)


@twin("LIFE-RUN-STATE", says="after", source="the scheduler of the optimiser before")
class KeepsTheFirstScheduler(LivedTraining):
    def step(self) -> None:
        self.kept = self.kept or [self.lr_scheduler]
        self.lr_scheduler, now = self.kept[0], self.lr_scheduler
        super().step()
        self.lr_scheduler = now


@twin("LIFE-RUN-STATE", says="after fail-", source="zero_grad() where a call fails")
class ClearsTheWindowThatFailed(LivedTraining):
    def undo(self, before: Any) -> None:
        before.restore()
        self.zero()


@twin("LIFE-RUN-STATE", says="after fail-", source="gradients of the layers that backward had reached")
class LeavesTheGradientsOfAFailedCall(LivedTraining):
    def undo(self, before: Any) -> None:
        left = [(p, p.grad) for p in self.inference_model.parameters()]
        before.restore()
        for parameter, gradient in left:
            parameter.grad = gradient


@twin("LIFE-RUN-STATE", says="after fail-", source="the scheduler steps in a finally clause")
class SchedulesTheFailedStep(LivedTraining):
    def undo(self, before: Any) -> None:
        before.restore()
        if self.run_optimizer and self.lr_scheduler is not None:
            self.lr_scheduler.step()


@twin("LIFE-RUN-STATE", says="after fail-", source="running statistics of the batch that failed")
class CountsTheBatchThatFailed(LivedTraining):
    def undo(self, before: Any) -> None:
        left = [(buffer, buffer.clone()) for buffer in self.inference_model.buffers()]
        before.restore()
        with torch.no_grad():
            for buffer, value in left:
                buffer.copy_(value)


@twin("LIFE-RUN-STATE", says="after fail-optimiser", source="the optimiser's moments are not undone")
class KeepsTheMomentsOfAFailedStep(LivedTraining):
    def undo(self, before: Any) -> None:
        left = [(p, {k: v.clone() for k, v in held.items()}) for p, held in self.optimizer.state.items()]
        before.restore()
        for parameter, held in left:
            self.optimizer.state[parameter] = held


@twin("LIFE-RUN-STATE", says="after", source="an adapter that was frozen once counts as frozen")
class ForgetsWhatIsTrainedAgain(LivedTraining):
    def finish(self, before: Any) -> Tensor | None:
        adapters = [p for name, p in self.inference_model.named_parameters() if "lora_" in name]
        self.kept = [*(self.kept or ()), *(id(p) for p in adapters if not p.requires_grad)]
        for parameter in adapters:
            if id(parameter) in self.kept:
                parameter.grad = None
        return super().finish(before)


@twin("LIFE-RUN-STATE", says="requires grad", source="a call that thaws all adapters")
class ThawsAllAdapters(LivedTraining):
    def forward(self, inputs: Any) -> Any:
        for name, parameter in self.inference_model.named_parameters():
            if "lora_" in name:
                parameter.requires_grad_(True)
        return super().forward(inputs)
