"""Operations that change a training run: its optimiser, scheduler, loss, settings, and the mode of its split model."""

from __future__ import annotations

from typing import Any

from conformance.clauses.life.run_life import KINDS, SCHEDULERS
from conformance.clauses.life.run_situation import RunOperation, RunSituation

FLAGS = ("plain", "foreach", "fused")
STEPS, NORMS = (1, 2, 3), (None, 0.125, 64.0)


def following(value: Any, values: Any) -> Any:
    """The value after this one, in turn."""
    listed = list(values)
    return listed[(listed.index(value) + 1) % len(listed)]


class Optimiser(RunOperation):
    """Another optimiser, with another number of groups, and a new scheduler over it."""

    name = "optimiser"

    def effect(self, now: RunSituation) -> RunSituation:
        return now.with_others()

    def act(self, life: Any) -> None:
        life.optimizer, life.groups = following(life.optimizer, KINDS), 3 - life.groups
        life.flag = following(life.flag, FLAGS)
        life.new_optimiser()
        life.new_scheduler()
        life.configure()


class Scheduler(RunOperation):
    """Another scheduler over the same optimiser, or none."""

    name = "scheduler"

    def effect(self, now: RunSituation) -> RunSituation:
        return now.with_others()

    def act(self, life: Any) -> None:
        life.scheduler = following(life.scheduler, SCHEDULERS)
        life.new_scheduler()
        life.configure()


class Loss(RunOperation):
    """Another loss function."""

    name = "loss"

    def act(self, life: Any) -> None:
        life.truth.loss = following(life.truth.loss, ("mean_squares", "half_squares"))
        life.configure()


class Accumulation(RunOperation):
    """Another gradient_accumulation_steps, set as an attribute."""

    name = "accumulation"

    def act(self, life: Any) -> None:
        life.truth.steps = following(life.truth.steps, STEPS)
        life.run(f"training.gradient_accumulation_steps = {life.truth.steps}")


class Clipping(RunOperation):
    """Another max_grad_norm, or none."""

    name = "clipping"

    def act(self, life: Any) -> None:
        life.truth.max_norm = following(life.truth.max_norm, NORMS)
        life.configure()


class Toggle(RunOperation):
    """An adapter's matrix frozen, or trained again, at the begin of a window."""

    name = "toggle-A"

    def effect(self, now: RunSituation) -> RunSituation:
        return now.but(frozen=not now.frozen)

    def act(self, life: Any) -> None:
        frozen = () if life.truth.frozen else ("inner.lora_A",)
        life.run(f"net.zero_grad()\nnet.inner.lora_A.weight.requires_grad_({not frozen})")
        life.truth.gradients, life.truth.frozen = {}, frozen


class Split(RunOperation):
    """The frozen products run on integers from now on."""

    name, needs = "split", "HybridFHEModel"

    def fits(self, now: RunSituation) -> bool:
        return not now.mode

    def effect(self, now: RunSituation) -> RunSituation:
        return now.with_others().but(mode="disable")

    def act(self, life: Any) -> None:
        life.truth.mode = "disable"
        life.split()


class SetMode(RunOperation):
    """Another mode of the split model."""

    needs = "HybridFHEModel"

    def __init__(self, mode: str) -> None:
        self.name, self.mode = f"mode-{mode}", mode

    def fits(self, now: RunSituation) -> bool:
        return bool(now.mode)

    def effect(self, now: RunSituation) -> RunSituation:
        return now.but(mode=self.mode)

    def act(self, life: Any) -> None:
        life.truth.mode = self.mode
        life.run(f'hybrid.set_fhe_mode("{self.mode}")')


MODES = tuple(map(SetMode, ("torch", "disable", "simulate")))
CHANGES = (Optimiser(), Scheduler(), Loss(), Accumulation(), Clipping(), Toggle(), Split(), *MODES)
