"""Windows of `LoraTrainer`: the batches between two steps, the last of which may be fewer."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from conformance.clauses.training.closed_form_network import ONE
from conformance.clauses.training.optimiser_step import norm_error
from conformance.clauses.training.trainer_run import TRAINER, TRAINERS, TrainerCase, TrainerRun
from conformance.judgement.judge import judge, worst
from conformance.judgement.linear_oracle import Expected
from conformance.judgement.outcomes import require
from conformance.numerics.formats import format_of
from conformance.specification.clause import clause
from conformance.target.subject import Subject


class Noted(torch.optim.SGD):
    """An optimiser that notes the gradients of each step and moves nothing."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        super().__init__(parameters, lr=0.0)
        self.noted: list[list[torch.Tensor | None]] = []

    def step(self, closure: object = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """Note the gradients."""
        held = [p.grad for group in self.param_groups for p in group["params"]]
        self.noted.append([None if gradient is None else gradient.detach().clone() for gradient in held])


def windows_of(case: TrainerCase) -> list[tuple[int, ...]]:
    """The batches of each step of an epoch."""
    return [tuple(range(case.calls))[at : at + case.steps] for at in range(0, case.calls, case.steps)]


@clause(
    "TRN-TRAINER-WINDOWS",
    sentence="""LoraTrainer.train steps once for each gradient_accumulation_steps batches and once for the batches
    that are left at the end of an epoch. A step has the mean of the gradients of its own batches, clipped by
    max_grad_norm.""",
    why="A last short window that is divided by the full number of batches trains with gradients that are too small.",
    # numbers of batches that are powers of two, so that no division rounds
    cases=TRAINERS.narrowed(steps=(4, 2, 1), calls=(5, 6, 2), clip=(0.0, 0.5, 0.125), epochs=(1, 2)),
    dtypes=ONE,
    subjects=TRAINER,
    convention="window_loss=batches",
)
def test_windows(subject: Subject, case: TrainerCase) -> float | None:
    run = TrainerRun(subject, case, optimizer=Noted).train(case.epochs)
    windows = windows_of(case)
    optimizer: Any = run.optimizer
    noted, ratios = optimizer.noted, []
    said = f"{case.epochs} epochs of {case.calls} batches with gradient_accumulation_steps = {case.steps}"
    require(
        len(noted) == case.epochs * len(windows),
        f"{said} made {len(noted)} steps: expected {case.epochs * len(windows)}",
    )
    for number, (window, held) in enumerate(zip(windows * case.epochs, noted, strict=True)):
        expected = run.problem.gradients(len(window), only=window)
        norm = float(np.sqrt(sum((e.value**2).sum() for e in expected.values())))
        limit = run.max_grad_norm
        factor = 1.0 if limit is None else min(1.0, limit / (norm + 1e-6))
        relative = 0.0 if factor == 1 else norm_error(run.problem.dtype) + 4 * format_of(run.problem.dtype).unit
        for (name, one), gradient in zip(expected.items(), held, strict=True):
            value = factor * one.value
            about = f"gradient of {name} at step {number + 1} of {len(noted)}"
            ratios.append(judge(gradient, Expected(about, value, relative * np.abs(value), run.problem.dtype)))
    return worst(*ratios)
