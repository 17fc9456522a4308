"""Known-bad twins of the lives of a training run that is saved, resumed, copied or split."""

from __future__ import annotations

import copy
from typing import Any

import reference
from reference.service.weight_version import Version
from tests.baselines.life_run import LivedRun, LivedTraining
from tests.baselines.life_run import run_twin as twin


def carried(training: Any, path: Any, names: tuple[str, ...]) -> int:
    """Load a run; these attributes stay what they were."""
    before = {name: getattr(training, name) for name in names}
    step = reference.load_training(training, path)
    for name, value in before.items():
        setattr(training, name, value)
    return step


@twin("LIFE-RUN-STATE", says="after resume", source="hiyouga/LLaMA-Factory: a run resumed within a window")
class DropsTheWindowWhenItResumes(LivedRun):
    def load_training(self, training: Any, path: Any) -> int:
        step = super().load_training(training, path)
        training.inference_model.zero_grad()
        return step


@twin("LIFE-RUN-STATE", says="after re", source="gradients of before the file was loaded stay")
class AddsTheGradientsOfBeforeLoading(LivedRun):
    def load_training(self, training: Any, path: Any) -> int:
        before = [(p, p.grad) for p in training.inference_model.parameters()]
        step = super().load_training(training, path)
        for parameter, gradient in before:
            if gradient is not None:
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        return step


@twin("LIFE-RUN-STATE", says="after re", source="the accumulation is a setting of the new process")
class LosesTheAccumulationInTheFile(LivedRun):
    def load_training(self, training: Any, path: Any) -> int:
        return carried(training, path, ("gradient_accumulation_steps",))


@twin("LIFE-RUN-STATE", says="after re", source="a switch that is not in the file")
class LosesCalibrationInTheFile(LivedRun):
    def load_training(self, training: Any, path: Any) -> int:
        return carried(training, path, ("calibrate",))


@twin("LIFE-RUN-STATE", says="after re", source="groups merged when a run is resumed")
class MergesTheGroupsWhenItResumes(LivedRun):
    def load_training(self, training: Any, path: Any) -> int:
        step = super().load_training(training, path)
        first, *others = training.optimizer.param_groups
        for group in others:
            group["lr"] = first["lr"]
        return step


@twin("LIFE-RUN-STATE", says="after re", source="a file of the weights and the scheduler's count only")
class KeepsTheLearningRateWhenItRewinds(LivedRun):
    def load_training(self, training: Any, path: Any) -> int:
        before = [group["lr"] for group in training.optimizer.param_groups]
        step = super().load_training(training, path)
        for group, rate in zip(training.optimizer.param_groups, before, strict=True):
            group["lr"] = rate
        return step


@twin("LIFE-RUN-STATE", says="after re", source="moments of another run: the state is not emptied first")
class KeepsTheMomentsWhenItRewinds(LivedRun):
    def load_training(self, training: Any, path: Any) -> int:
        before = {p: dict(held) for p, held in training.optimizer.state.items()}
        step = super().load_training(training, path)
        for parameter, held in before.items():
            training.optimizer.state.setdefault(parameter, held)
            if not training.optimizer.state[parameter]:
                training.optimizer.state[parameter] = held
        return step


@twin("LIFE-RUN-STATE", says="after transfer", source="a state_dict of the parameters alone")
class LosesItsBuffersInAStateDict(LivedTraining):
    def state_dict(self, *arguments: Any, **options: Any) -> Any:
        buffers = {name for name, _ in self.named_buffers()}
        state = super().state_dict(*arguments, **options)
        return {name: value for name, value in state.items() if name not in buffers}

    def load_state_dict(self, state: Any, *arguments: Any, **options: Any) -> Any:
        return super().load_state_dict({**super().state_dict(), **state}, *arguments, **options)


@twin("LIFE-RUN-STATE", says="after", source="a copy that goes on with the optimiser of the original")
class CopiesShareTheOptimiser(LivedTraining):
    def __deepcopy__(self, memo: Any) -> Any:
        made = self.__class__.__new__(self.__class__)
        memo[id(self)] = made
        given, self.optimizer = self.optimizer, None
        vars(made).update(copy.deepcopy(vars(self), memo))
        self.optimizer = made.optimizer = given
        return made


@twin("LIFE-RUN-STATE", says="after deepcopy", source="a copy that is configured like a new one")
class CopiesForgetTheirSettings(LivedTraining):
    def __deepcopy__(self, memo: Any) -> Any:
        made = self.__class__.__new__(self.__class__)
        memo[id(self)] = made
        vars(made).update(copy.deepcopy(vars(self), memo))
        made.gradient_accumulation_steps, made.max_grad_norm = 1, None
        return made


@twin("LIFE-RUN-LOSS", says="after", source="the mode of the first call")
class KeepsItsFirstMode(reference.HybridFHEModel):
    def set_fhe_mode(self, mode: Any) -> None:
        self.first = getattr(self, "first", mode)
        super().set_fhe_mode(self.first)


@twin("LIFE-RUN-STATE", says="has changed since compile_model", source="a copy counts writes from zero")
class CopiesTakeTheirWeightForChanged(reference.HybridFHEModel):
    class Module(reference.RemoteModule):
        def take(self, quantized: Any, std: Any) -> None:
            super().take(quantized, std)
            self._compiled_from = [Counted(**vars(version)) for version in self._compiled_from or ()]

    remote_module = Module


class Counted(Version):
    """A version whose copy keeps the count of the original's tensor."""

    def __getstate__(self) -> dict[str, Any]:
        return dict(vars(self))

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
