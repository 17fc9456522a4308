"""The other convention of `LoraTrainer`: a loss that is divided by the labels of the whole window."""

from __future__ import annotations

import dataclasses
from typing import Any

from conformance.clauses.training.closed_form_network import ONE, Problem
from conformance.clauses.training.trainer_run import TRAINER, TRAINERS, TrainerCase, TrainerRun
from conformance.clauses.training.trainer_windows import Noted, windows_of
from conformance.judgement.judge import judge, worst
from conformance.judgement.outcomes import require
from conformance.specification.clause import SHOULD, clause
from conformance.target.subject import Subject

ROWS = (2, 6, 2, 6, 2, 6)  # rows of each batch; each window of the cases has a power of two of them


@clause(
    "TRN-TRAINER-ITEMS",
    sentence="""With the feature window_loss "items", LoraTrainer.train divides what loss_fn gives for a batch, the sum
    over its labels, by the number of labels in the window: a step has the gradient of the mean over all its labels,
    however many each batch has.""",
    why="A mean of the batches' means weighs the labels of a short batch more than those of a long one.",
    # the numbers of labels are powers of two, so that no division rounds
    cases=TRAINERS.narrowed(m=(2,), n=(2,), steps=(4, 2), calls=(5, 6), epochs=(1, 2)),
    level=SHOULD,
    dtypes=ONE,
    subjects=TRAINER,
    convention="window_loss=items",
    weight=0.34,
)
def test_items(subject: Subject, case: TrainerCase) -> float | None:
    problem = Problem(case, subject.device, rows=ROWS[: case.calls])
    run = TrainerRun(subject, case, optimizer=Noted, problem=problem).train(case.epochs)
    windows, ratios = windows_of(case) * case.epochs, []
    optimizer: Any = run.optimizer
    noted = optimizer.noted
    require(len(noted) == len(windows), f"{case.epochs} epochs made {len(noted)} steps: expected {len(windows)}")
    for number, (window, held) in enumerate(zip(windows, noted, strict=True), 1):
        labels = case.n * sum(ROWS[index] for index in window)
        expected = problem.gradients(labels, only=window)
        for one, gradient in zip(expected.values(), held, strict=True):
            about = f"{one.name} at step {number} of {len(noted)}"
            ratios.append(judge(gradient, dataclasses.replace(one, name=about)))
    return worst(*ratios)
