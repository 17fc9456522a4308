"""Known-bad twins of failed steps: a call that raises leaves a part of its work behind, or clears too much."""

from __future__ import annotations

import copy
import random

import numpy as np
import torch

from reference.step_state import StepState
from tests.baselines.training import Step
from tests.baselines.training import step_breaks as breaks


@breaks("TRN-FAILED", says="a call that raised changed the gradient of")
class LeavesGradientsBehind(Step):
    def differentiate(self, loss):
        loss.backward()

    def undo(self, before):
        parameters = list(self.inference_model.parameters())
        left = [p.grad for p in parameters]
        before.restore()
        for parameter, gradient in zip(parameters, left, strict=True):
            parameter.grad = gradient


@breaks("TRN-FAILED", says="a call that raised changed the gradient of", source="zero_grad() in an except clause")
class ClearsTheWholeWindow(Step):
    def undo(self, before):
        before.restore()
        self.zero()


@breaks("TRN-FAILED", says="changed torch's random state")
class LeavesTorchsRandomState(Step):
    def undo(self, before):
        left = torch.get_rng_state()
        before.restore()
        torch.set_rng_state(left)


@breaks("TRN-FAILED", says="random state", source="NVIDIA/Megatron-LM: only CUDA's states are tracked")
class RestoresTorchsRandomStateOnly(Step):
    def undo(self, before):
        left = random.getstate(), np.random.get_state()
        before.restore()
        random.setstate(left[0])
        np.random.set_state(left[1])


@breaks("TRN-FAILED", says="a call that raised changed")
class KeepsTheFailedStepOfTheOptimiser(Step):
    def taken(self):
        return StepState(self.inference_model)


@breaks("TRN-FAILED", says="of the optimiser's parameter")
class KeepsTheMoments(Step):
    def undo(self, before):
        left = [dict(held) for held in copy.deepcopy(list(self.optimizer.state.values()))]
        before.restore()
        for parameter, held in zip(self.optimizer.param_groups[0]["params"], left, strict=False):
            self.optimizer.state[parameter] = held


@breaks("TRN-FAILED", says="the learning rate")
class KeepsTheLearningRate(Step):
    def undo(self, before):
        left = [group["lr"] for group in self.optimizer.param_groups]
        before.restore()
        for group, rate in zip(self.optimizer.param_groups, left, strict=True):
            group["lr"] = rate


@breaks("TRN-FAILED", says="a call that raised changed calls")
class CountsTheFailedBatch(Step):
    def undo(self, before):
        left = {name: buffer.clone() for name, buffer in self.inference_model.named_buffers()}
        before.restore()
        for name, buffer in self.inference_model.named_buffers():
            buffer.copy_(left[name])


@breaks("TRN-FAILED", says="the repeated call gave another result in", source="a batch that failed is skipped")
class SkipsTheBatchThatFailed(Step):
    failed = False

    def undo(self, before):
        before.restore()
        self.failed = True

    def differentiate(self, loss):
        super().differentiate(loss * (0 if self.failed else 1))
        self.failed = False


@breaks("TRN-FAILED", says="raised nothing although")
class SwallowsErrors(Step):
    def forward(self, inputs):
        try:
            return super().forward(inputs)
        except RuntimeError:
            return torch.zeros((), requires_grad=True), None
