"""The learning rates of `LoraTrainer`: one for each step of the optimiser."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from conformance.clauses.training.closed_form_network import ONE
from conformance.clauses.training.trainer_run import TRAINER, TRAINERS, TrainerCase, TrainerRun
from conformance.judgement.outcomes import require
from conformance.specification.clause import SHOULD, clause
from conformance.target.subject import Subject


class Rated(torch.optim.SGD):
    """An optimiser that notes the learning rate of each step and moves nothing."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        super().__init__(parameters, lr=1.0)
        self.noted: list[float] = []

    def step(self, closure: object = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """Note the learning rate."""
        self.noted.append(self.param_groups[0]["lr"])


def _schedule(optimizer: torch.optim.Optimizer) -> Any:
    """A scheduler with another rate after each of its steps."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))


@clause(
    "TRN-TRAINER-SCHEDULE",
    sentence="""LoraTrainer.train steps the scheduler once after each step of the optimiser, that of a short window
    included: the first step has the first learning rate, and no rate is left out or comes twice.""",
    why="A scheduler that steps with each batch ends its decay long before the run ends.",
    cases=TRAINERS.narrowed(steps=(4, 2, 1), calls=(5, 6, 2), epochs=(1, 2)),
    level=SHOULD,
    dtypes=ONE,
    subjects=TRAINER,
    weight=0.34,
)
def test_schedule(subject: Subject, case: TrainerCase) -> None:
    run = TrainerRun(subject, case, optimizer=Rated, scheduler=_schedule).train(case.epochs)
    steps = case.epochs * -(-case.calls // case.steps)
    optimizer: Any = run.optimizer
    found = [*optimizer.noted, optimizer.param_groups[0]["lr"]]
    require(
        found == [1 / (1 + step) for step in range(steps + 1)],
        f"{case.epochs} epochs of {case.calls} batches with gradient_accumulation_steps = {case.steps} had the "
        f"learning rates {_shown(found[:-1])}, and {_shown(found[-1:])} afterwards: expected 1, 1/2 … 1/{steps}, and "
        f"1/{steps + 1} afterwards",
    )


def _shown(rates: list[float]) -> str:
    return ", ".join(f"{rate:.3g}" for rate in rates)
