"""The life of a training run: whatever happened to it, its losses, parameters and state are those of a plain loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from conformance.clauses.life.life_case import NAMES, LifeCase, LifeSpace
from conformance.clauses.life.run_changes import CHANGES
from conformance.clauses.life.run_judgement import judge_results, judge_state
from conformance.clauses.life.run_life import RunLife
from conformance.clauses.life.run_situation import RunCase, RunOperation, RunSituation
from conformance.clauses.life.run_states import STATE
from conformance.clauses.life.run_uses import USES
from conformance.specification.clause import clause
from conformance.target.subject import Subject

RUN: dict[str, RunOperation] = {operation.name: operation for operation in (*USES, *CHANGES, *STATE)}
NAMES += RUN
BEGUN = RunSituation()
ALONE = ("LoraTraining",)
OPTIONS: dict[str, Any] = {
    "k": (2, 3),
    "n": (2, 3),
    "r": (1, 2),
    "optimizer": ("sgd", "momentum", "adam", "adamw"),
    "flag": ("plain", "foreach", "fused"),
    "groups": (1, 2),
    "scheduler": ("none", "exponential", "steps"),
    "steps": (1, 2, 3),
    "clip": (0.0, 0.125),
    "static": (False, True),
}


def missing(operations: Mapping[str, RunOperation]) -> Callable[[Any], set[str]]:
    """A function that returns the names of those operations whose public names a subject's target lacks."""

    def lacking(subject: Subject) -> set[str]:
        life = RunLife(subject, RunCase(k=2, n=2, r=1, dtype="float64"), BEGUN)
        life.end()
        return {name for name, operation in operations.items() if not operation.available(life)}

    return lacking


RUNS = LifeSpace(RUN, BEGUN, missing(RUN), case_type=RunCase, **OPTIONS)


def run_lived(subject: Subject, case: LifeCase, judge: Callable[[RunLife], None]) -> float | None:
    """Live through the operations of a case; after every one, train on a micro-batch and judge the run."""
    assert isinstance(case, RunCase)
    return RunLife(subject, case, BEGUN).live(RUN, judge)


@clause(
    "LIFE-RUN-LOSS",
    sentence="""After any sequence of operations on a training run, a call returns the loss and the grad_norm, and an
    evaluation the output, of a plain training loop to which the same has happened.""",
    cases=RUNS,
    dtypes=("float64",),
    subjects=ALONE,
    weight=1.5,
)
def test_losses_in_a_run(subject: Subject, case: LifeCase) -> float | None:
    return run_lived(subject, case, judge_results)


@clause(
    "LIFE-RUN-STATE",
    sentence="""After any sequence of operations on a training run, the adapters, their accumulated gradients, the
    optimiser's state, groups and learning rates, the scheduler's count, the settings, the switches, the network's
    buffers and which adapters require grad are those of a plain training loop; a call that raised has changed none of
    them.""",
    cases=RUNS,
    dtypes=("float64",),
    subjects=ALONE,
    weight=5.7,
)
def test_state_in_a_run(subject: Subject, case: LifeCase) -> float | None:
    return run_lived(subject, case, judge_state)
