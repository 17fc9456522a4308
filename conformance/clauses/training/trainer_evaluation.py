"""Evaluation by `LoraTrainer`: its result, and that the run goes on as if there had been none."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from conformance.clauses.training.closed_form_network import ONE
from conformance.clauses.training.trainer_run import TRAINED, TRAINER, TrainerCase, TrainerRun
from conformance.isolation.process_state import kept
from conformance.judgement.judge import judge
from conformance.judgement.linear_oracle import Expected
from conformance.judgement.outcomes import require
from conformance.numerics.formats import format_of
from conformance.specification.clause import clause
from conformance.target.expected_errors import calling_quietly
from conformance.target.subject import Subject

EVALUATED = TRAINED.narrowed(calls=(3,), mode=("torch",))


def _evaluated(subject: Subject, case: TrainerCase, **options: Any) -> TrainerRun:
    """A run with a loader for evaluation, which draws from torch's generator whenever it is iterated."""
    problem = TrainerRun(subject, case).problem
    loader: Any = DataLoader([problem.batch(index) for index in range(2)], batch_size=None, shuffle=True)  # type: ignore[arg-type]
    return TrainerRun(subject, case, eval_loader=loader, **options)


@clause(
    "TRN-TRAINER-EVAL",
    sentence="""LoraTrainer.evaluate() returns the mean loss over eval_loader as eval_loss, in evaluation mode. It
    leaves parameters, gradients, the mode of every module and all random states as they were. With the feature
    training_flags "set" it leaves every module in evaluation mode.""",
    cases=EVALUATED,
    dtypes=ONE,
    subjects=TRAINER,
    weight=0.34,
)
def test_evaluation(subject: Subject, case: TrainerCase) -> float | None:
    run = _evaluated(subject, case)
    run.net.inner.eval()  # a part that the user has frozen so
    for parameter in run.adapters.values():
        parameter.grad = torch.ones_like(parameter)
    modes, before = {name: module.training for name, module in run.net.named_modules()}, run.state()
    with kept("LoraTrainer.evaluate()"), calling_quietly("LoraTrainer.evaluate()"):
        found = run.trainer.evaluate()
    if subject.follows("training_flags", "set"):  # each training step calls train()
        modes = dict.fromkeys(modes, False)
    changed = [name or "the model" for name, module in run.net.named_modules() if module.training != modes[name]]
    require(not changed, f"evaluate() left {', '.join(changed)} in another mode")
    run.require_state(before, "after evaluate()")
    for name, parameter in run.adapters.items():
        same = parameter.grad is not None and bool((parameter.grad == 1).all())
        require(same, f"evaluate() changed the gradient of {name}")
    keys = sorted(found) if isinstance(found, dict) else type(found).__name__
    require(keys == ["eval_loss"], f"evaluate() returned {keys}: expected a dict with the key eval_loss")
    mean = np.asarray((run.problem.loss(0).value + run.problem.loss(1).value) / 2)
    allowed = 4 * format_of(run.problem.dtype).unit * np.abs(mean)
    return judge(
        torch.tensor(found["eval_loss"], dtype=torch.float64), Expected("eval_loss", mean, allowed, torch.float64)
    )


@clause(
    "TRN-TRAINER-EVAL-RUN",
    sentence="A run that is evaluated every eval_steps steps ends as the same run without an eval_loader, bit for bit.",
    why="A loader that shuffles draws random numbers, so that evaluating it would change the dropout of training.",
    cases=EVALUATED.narrowed(mode=("torch", "simulate"), epochs=(2,)),
    dtypes=ONE,
    subjects=TRAINER,
    weight=0.2,
)
def test_evaluated_run(subject: Subject, case: TrainerCase) -> None:
    run, plain = _evaluated(subject, case, eval_steps=1).train(case.epochs), TrainerRun(subject, case)
    lines = sum("eval_loss" in line for line in run.trainer.history)
    require(lines > 0, "history has no eval_loss although there is an eval_loader and eval_steps = 1")
    run.require_state(plain.train(case.epochs).state(), "a run that was evaluated beside one that was not")
