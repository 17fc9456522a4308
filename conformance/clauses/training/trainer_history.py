"""The lines of `LoraTrainer.history`: the loss and the norm of each step."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from conformance.clauses.training.closed_form_network import ONE
from conformance.clauses.training.optimiser_step import norm_error
from conformance.clauses.training.trainer_run import TRAINER, TRAINERS, TrainerCase, TrainerRun
from conformance.clauses.training.trainer_windows import Noted, windows_of
from conformance.judgement.judge import judge, worst
from conformance.judgement.linear_oracle import Expected
from conformance.judgement.outcomes import require
from conformance.numerics.formats import format_of
from conformance.specification.clause import SHOULD, clause
from conformance.target.subject import Subject


@clause(
    "TRN-TRAINER-HISTORY",
    sentence="""With logging_steps = 1, history has a line for each step: its step and epoch, which are counted from 1,
    as loss the mean of the losses of its batches, and as grad_norm, where max_grad_norm is set, the norm of its
    gradients before clipping.""",
    why="A loss that is summed over a window, or of its last batch alone, cannot be compared with another run's.",
    # numbers of batches that are powers of two, so that no division rounds
    cases=TRAINERS.narrowed(steps=(4, 2, 1), calls=(5, 6, 2), clip=(0.0, 0.5, 0.125), epochs=(1, 2)),
    level=SHOULD,
    dtypes=ONE,
    subjects=TRAINER,
    convention="window_loss=batches",
    weight=0.34,
)
def test_history(subject: Subject, case: TrainerCase) -> float | None:
    run, windows, ratios = TrainerRun(subject, case, optimizer=Noted).train(case.epochs), windows_of(case), []
    history = run.trainer.history
    found = [(line.get("epoch"), line.get("step")) for line in history if "loss" in line]
    expected = [(at // len(windows) + 1, at + 1) for at in range(case.epochs * len(windows))]
    require(found == expected, f"history has lines of (epoch, step) {found}: expected {expected}")
    for number, (window, line) in enumerate(zip(windows * case.epochs, history, strict=True), 1):
        losses = [float(run.problem.loss(index).value) for index in window]
        ratios.append(_judged(line, "loss", number, np.mean(losses), 4 * _unit(run) * np.abs(losses).max()))
        if case.clip:
            gradients = run.problem.gradients(len(window), only=window).values()
            norm = float(np.sqrt(sum((e.value**2).sum() for e in gradients)))
            ratios.append(_judged(line, "grad_norm", number, norm, norm * norm_error(run.problem.dtype)))
    return worst(*ratios)


def _judged(line: dict[str, Any], key: str, number: int, value: Any, allowed: Any) -> float | None:
    """Judge a number in a line of history."""
    what = f"{key} of step {number} in history"
    require(isinstance(line.get(key), float | int), f"{what} is {line.get(key)!r}: expected a number")
    measured = torch.tensor(line[key], dtype=torch.float64)
    return judge(measured, Expected(what, np.asarray(value), np.asarray(allowed), torch.float64))


def _unit(run: TrainerRun) -> float:
    return format_of(run.problem.dtype).unit
