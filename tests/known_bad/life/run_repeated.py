"""Known-bad twins of training runs that are repeated: random numbers and noise move where nothing has happened."""

from __future__ import annotations

from typing import Any

import torch

import reference
from tests.baselines.life_run import LivedRun, LivedTraining
from tests.baselines.life_run import run_twin as twin


def remote(model: Any) -> list[Any]:
    """The remote modules of a model."""
    return [module for module in model.modules() if hasattr(module, "noise_position")]


@twin("LIFE-RUN-REPEAT", says="is not what it is without", source="a call that failed has drawn its dropout masks")
class LeavesTheRandomStateOfAFailedCall(LivedTraining):
    def undo(self, before: Any) -> None:
        left = torch.get_rng_state()
        before.restore()
        torch.set_rng_state(left)


@twin("LIFE-RUN-REPEAT", says="is not what it is without", source="a call that failed has drawn its noise")
class LeavesTheNoiseOfAFailedCall(LivedTraining):
    def undo(self, before: Any) -> None:
        left = [(module, module.noise_position) for module in remote(self)]
        before.restore()
        for module, position in left:
            module.noise_position = position


@twin("LIFE-RUN-REPEAT", says="is not what it is without", source="a mode that begins its noise again")
class StartsTheNoiseAgainInEachMode(reference.HybridFHEModel):
    def set_fhe_mode(self, mode: Any) -> None:
        if getattr(self.mode, "value", None) != mode:
            self.noise_position = (self.noise_position[0], 0)
        super().set_fhe_mode(mode)


@twin("LIFE-RUN-REPEAT", says="is not what it is without", source="only the seed of the noise is in the file")
class StartsTheNoiseAgainWhenItResumes(LivedRun):
    def load_training(self, training: Any, path: Any) -> int:
        step = super().load_training(training, path)
        for module in remote(training):
            module.noise_position = (module.noise_position[0], 0)
        return step


@twin("LIFE-RUN-REPEAT", says="is not what it is without", source="the noise of the new process")
class DrawsOtherNoiseWhenItResumes(LivedRun):
    def load_training(self, training: Any, path: Any) -> int:
        before = [(module, module.noise_position) for module in remote(training)]
        step = super().load_training(training, path)
        for module, position in before:
            module.noise_position = position
        return step


@twin("LIFE-RUN-REPEAT", says="is not what it is without", source="torch's random state is not in the file")
class DrawsOtherMasksWhenItResumes(LivedRun):
    def load_training(self, training: Any, path: Any) -> int:
        left = torch.get_rng_state()
        step = super().load_training(training, path)
        torch.set_rng_state(left)
        return step


@twin("LIFE-RUN-REPEAT", says="is not what it is without", source="noise drawn for mode torch too")
class DrawsNoiseInEveryMode(reference.HybridFHEModel):
    class Module(reference.RemoteModule):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = super().forward(x)
            if not torch.is_grad_enabled():
                seed, drawn = self.noise_position
                self.noise_position = (seed, drawn + 1)
            return y

    remote_module = Module


@twin("LIFE-RUN-REPEAT", says="is not what it is without", source="a copy of the split model has another seed")
class CopiesHaveNoiseOfTheirOwn(reference.HybridFHEModel):
    def __deepcopy__(self, memo: Any) -> Any:
        import copy

        made = self.__class__.__new__(self.__class__)
        memo[id(self)] = made
        vars(made).update(copy.deepcopy(vars(self), memo))
        made.noise_position = (made.noise_position[0] + 1, 0)
        return made
