"""Operations on a training run as a whole: saving and resuming, state_dicts, copies."""

from __future__ import annotations

import dataclasses
from typing import Any

from conformance.clauses.life.run_situation import RunOperation, RunSituation, Saved

FILES = "save_training load_training"
COPIED = """original = training
training, optimizer, scheduler, hybrid = copy.deepcopy((training, optimizer, scheduler, hybrid))
net = training.inference_model
for new, old in zip(net.parameters(), original.inference_model.parameters()):  # torch copies no gradients
    new.grad = None if old.grad is None else old.grad.clone()
with torch.no_grad():
    for tensor in (*original.parameters(), *original.buffers()):
        tensor.add_(1)"""
STATES = "states = [part and part.state_dict() for part in (training, optimizer, scheduler)]"
LOADED = """for part, state in zip((training, optimizer, scheduler), states):
    if part:
        part.load_state_dict(state)"""


class Save(RunOperation):
    """The run saved in a file, which replaces an earlier one and lacks a frozen adapter."""

    name, needs = "save", FILES

    def effect(self, now: RunSituation) -> RunSituation:
        return now.but(saved=Saved(now.mode, frozen=now.frozen))

    def act(self, life: Any) -> None:
        life.run(f"target.save_training(training, folder, {life.truth.calls})")
        life.kept = life.truth.copy(), (life.optimizer, life.flag, life.groups, life.scheduler)


def load(life: Any) -> None:
    """Load the saved run into the present objects."""
    life.run("position = target.load_training(training, folder)")
    wanted = life.kept[0].calls
    life.require(f"position == {wanted}", f"load_training did not return {wanted}, the position that was saved")


class Resume(RunOperation):
    """The saved run loaded into new objects, as another process does."""

    name, needs = "resume", FILES

    def fits(self, now: RunSituation) -> bool:
        return now.saved is not None

    def effect(self, now: RunSituation) -> RunSituation:
        assert now.saved is not None
        return RunSituation(now.saved.mode, dataclasses.replace(now.saved, fits=True), now.saved.frozen)

    def act(self, life: Any) -> None:
        kept, (life.optimizer, life.flag, life.groups, life.scheduler) = life.kept
        life.truth = kept.copy(steps=1, max_norm=None)  # the file has the settings
        life.truth.training = True  # as in every new network
        life.build()
        for name in kept.frozen:  # the user has its values from elsewhere, as those of the base
            code = f'with torch.no_grad():\n    net.get_parameter("{name}.weight").requires_grad_(False).copy_(value)'
            life.run(code, value=life.tensor(kept.values[name]))
        load(life)
        life.truth = kept.copy(training=True, ranges=life.truth.ranges)


class Rewind(RunOperation):
    """The saved run loaded into the run that goes on, whose loss, mode and training flag stay."""

    name, needs = "rewind", FILES

    def fits(self, now: RunSituation) -> bool:
        return now.saved is not None and now.saved.fits and now.saved.frozen == now.frozen

    def act(self, life: Any) -> None:
        present, (kept, _) = life.truth, life.kept
        load(life)
        of_the_objects = {"loss": present.loss, "mode": present.mode, "ranges": present.ranges}
        life.truth = kept.copy(training=present.training, **of_the_objects)
        life.truth.values |= {name: present.values[name] for name in kept.frozen}


class Restart(RunOperation):
    """The run saved, and loaded into new objects at once, in a process with other random numbers."""

    name, needs = "restart", FILES

    def effect(self, now: RunSituation) -> RunSituation:
        return Save().effect(now)

    def act(self, life: Any) -> None:
        training = life.truth.training
        Save().act(life)
        life.run("torch.manual_seed(0)")
        Resume().act(life)
        life.run(f"training.train({training})")
        life.truth.training = training


class Transfer(RunOperation):
    """The state_dicts of run, optimiser and scheduler, loaded into new objects; accumulated gradients are left."""

    name = "transfer"

    def effect(self, now: RunSituation) -> RunSituation:
        return now.but(frozen=False)

    def act(self, life: Any) -> None:
        truth = life.truth.copy(gradients={}, training=True, frozen=())
        life.run(STATES)
        life.truth.training = True
        life.build()
        life.run(LOADED)
        if truth.mode:  # the weights have been written since they were compiled
            life.compile()
            truth.ranges = life.truth.ranges
        life.run(f"training.toggle_run_optimizer({truth.run_optimizer})\ntraining.toggle_calibrate({truth.calibrate})")
        life.truth = truth


class Copy(RunOperation):
    """A deep copy of the run, its optimiser and scheduler in its place, with the gradients; the original changes."""

    name = "deepcopy"

    def act(self, life: Any) -> None:
        life.run(COPIED)


STATE = (Save(), Resume(), Rewind(), Restart(), Transfer(), Copy())
