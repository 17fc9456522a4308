"""Two training runs side by side: operations that leave a run where it is leave its random numbers and noise there."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from conformance.clauses.life.life_case import NAMES, LifeCase, LifeSpace
from conformance.clauses.life.run import ALONE, BEGUN, OPTIONS, RUN, missing
from conformance.clauses.life.run_changes import MODES, SetMode
from conformance.clauses.life.run_life import LARGEST, RunLife
from conformance.clauses.life.run_situation import RunCase, RunOperation, RunSituation
from conformance.clauses.life.run_uses import FAILURES
from conformance.judgement.outcomes import Inconclusive
from conformance.specification.clause import clause
from conformance.target.subject import Subject


class Visit(RunOperation):
    """An evaluation in mode torch; then the mode from before."""

    name, needs = "visit", "HybridFHEModel"

    def fits(self, now: RunSituation) -> bool:
        return bool(now.mode)

    def act(self, life: Any) -> None:
        mode = life.truth.mode
        for other in ("torch", mode):
            SetMode(other).act(life)
            if other == "torch":
                life.evaluate()


HARMLESS = (*FAILURES, RUN["deepcopy"], RUN["restart"], Visit())
USED = ("step", "accumulate", "calibrate", "eval", "accumulation", "clipping", "scheduler")
CHOSEN = (*HARMLESS, *(RUN[name] for name in USED), RUN["split"], *MODES)
REPEATED: dict[str, RunOperation] = {one.name: one for one in CHOSEN}
NAMES += REPEATED
LAST = ("mode-simulate", "step")  # shows where the noise of a split model stands


def seeded(seed: int) -> None:
    """Seed every generator that a run may draw from."""
    for seeds in (random.seed, np.random.seed, torch.manual_seed):
        seeds(seed)


def states(subject: Subject, case: RunCase, names: list[str]) -> list[dict[str, Any]]:
    """The state of a run after each of these operations, up to the one with which the run diverges."""
    seeded(case.seed)
    life, found = RunLife(subject, case, BEGUN), []
    try:
        for name in names:
            life.happen(REPEATED[name])
            state = _state(life)
            if diverges(state, life.names["net"].state_dict()):
                break  # a later call may raise, rightly, because its numbers overflow
            found.append(state)
    finally:
        life.end()
    return found


def diverges(state: dict[str, Any], network: dict[str, Any]) -> bool:
    """Whether the tensors of a network have large elements, or any tensor of the state has elements that overflow."""
    large = any(tensor.abs().max() >= LARGEST for tensor in network.values() if tensor.is_floating_point())
    return large or not all(tensor.isfinite().all() for tensor in state.values())


def _state(life: RunLife) -> dict[str, Any]:
    """What the operations so far decide: parameters, buffers, gradients, optimiser state, the next random numbers."""
    net, optimizer = life.names["net"], life.names["optimizer"]
    found: dict[str, Any] = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            none = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
            found[f"the gradient of {name}"] = none
            for key, value in optimizer.state[parameter].items():
                found[f"{key} of {name}"] = torch.as_tensor(value).clone()
    found["torch's random state"] = torch.get_rng_state()
    return found


@clause(
    "LIFE-RUN-REPEAT",
    sentence="""Calls that raise, evaluations in mode torch, deep copies, and saving and resuming leave a training run
    where it was: with dropout and simulated noise too, all later calls give the same bits as without them.""",
    why="A run that was interrupted, or repeats a failed call, could not be reproduced.",
    cases=LifeSpace(
        REPEATED, BEGUN, missing(REPEATED), case_type=RunCase, **{**OPTIONS, "dropout": (0.25,), "static": (False,)}
    ),
    dtypes=("float32",),
    subjects=ALONE,
    weight=1.7,  # of 18 lives, quick has ten
)
def test_repeated_run(subject: Subject, case: LifeCase) -> None:
    assert isinstance(case, RunCase)
    harmless = {operation.name for operation in HARMLESS}
    names = (*case.operations, *LAST)
    expected = states(subject, case, [name for name in names if name not in harmless])
    seeded(case.seed)
    life, number = RunLife(subject, case, BEGUN), -1
    try:
        for name in names:
            if name in harmless:
                life.act(REPEATED[name])
            else:
                number += 1
                if number == len(expected):
                    raise Inconclusive(f"the run diverges with {name}, after {number} operations that were judged")
                life.happen(REPEATED[name])
            if number >= 0:
                _require_same(life, expected[number])
    finally:
        life.end()


def _require_same(life: RunLife, expected: dict[str, Any]) -> None:
    found = _state(life)
    life.names.update(found=found, expected=expected)
    for name in {**expected, **found}:
        one, other = found.get(name), expected.get(name)
        same = isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other)
        life.names["same"] = same
        life.require("same", f"{name} is not what it is without {_harmless_in(life)}")


def _harmless_in(life: RunLife) -> str:
    names = {operation.name for operation in HARMLESS}
    return ", ".join(dict.fromkeys(name for name in life.past if name in names)) or "any of these operations"
