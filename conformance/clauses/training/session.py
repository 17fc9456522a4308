"""A `LoraTraining` of the target around a case's network: configured, called, and observed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from conformance.clauses.training.closed_form_network import ADAPTERS, Problem, StepCase, weighted_sum
from conformance.judgement.judge import judge, worst
from conformance.judgement.outcomes import require
from conformance.target.calls import calling
from conformance.target.expected_errors import calling_quietly
from conformance.target.subject import Subject

RATE = 0.375  # the learning rate: no step by an integer gradient takes an integer weight to zero


class Watched(torch.optim.SGD):
    """SGD that records its steps in `events`."""

    def __init__(self, parameters: list[nn.Parameter], events: list[str], lr: float = RATE) -> None:
        super().__init__(parameters, lr=lr)
        self.events = events

    def step(self, closure: Any = None) -> Any:
        """Take a step, and record whether all gradients were empty."""
        held = [p.grad for group in self.param_groups for p in group["params"]]
        empty = all(g is None or not g.any() for g in held)
        self.events.append("optimizer.step without gradients" if empty else "optimizer.step")
        return super().step(closure)


class Scheduler:
    """A learning-rate scheduler that halves the rate and records its steps in `events`."""

    def __init__(self, optimizer: torch.optim.Optimizer, events: list[str]) -> None:
        self.optimizer, self.events = optimizer, events

    def step(self) -> None:
        """Halve the learning rate."""
        self.events.append("lr_scheduler.step")
        for group in self.optimizer.param_groups:
            group["lr"] /= 2


class Session:
    """One LoraTraining of the target, over the network of a problem; options are further arguments of LoraTraining."""

    def __init__(self, subject: Subject, case: StepCase, problem: Problem | None = None, **options: Any) -> None:
        self.case = case
        self.problem = problem or Problem(case, subject.device)
        self.net: Any = self.problem.net()
        self.adapters = {name: self.net.get_parameter(f"{name}.weight") for name in ADAPTERS}
        self.frozen = {n: p for n, p in self.net.named_parameters() if not p.requires_grad}
        self.events: list[str] = []
        self.optimizer = Watched(list(self.adapters.values()), self.events)
        self.scheduler = Scheduler(self.optimizer, self.events)
        with calling_quietly(f"LoraTraining({', '.join(['model', *options])})"):
            self.training = subject.thing(self.net, **options)

    @property
    def max_grad_norm(self) -> float | None:
        """The max_grad_norm for the case's `clip`."""
        return self.case.clip * self.problem.norm(self.case.steps) if self.case.clip else None

    def configure(self, *, optimizer: bool = True, **given: Any) -> Session:
        """Set all training parameters as the case says, except those given."""
        named = {"gradient_accumulation_steps": self.case.steps, "max_grad_norm": self.max_grad_norm}
        arguments: dict[str, Any] = {
            "optimizer": self.optimizer if optimizer else None,
            "lr_scheduler": self.scheduler if optimizer else None,
            "loss_fn": weighted_sum if self.case.source == "loss_fn" else None,
            "training_args": named if self.case.args == "dict" else SimpleNamespace(**named),
            **given,
        }
        with calling("LoraTraining.update_training_parameters(optimizer, lr_scheduler, loss_fn, training_args)"):
            self.training.update_training_parameters(**arguments)
        return self

    def toggle(self, *, run_optimizer: bool | None = None, calibrate: bool | None = None) -> Session:
        """Switch the optimiser or calibration on or off."""
        if run_optimizer is not None:
            with calling(f"LoraTraining.toggle_run_optimizer({run_optimizer})"):
                self.training.toggle_run_optimizer(run_optimizer)
        if calibrate is not None:
            with calling(f"LoraTraining.toggle_calibrate({calibrate})"):
                self.training.toggle_calibrate(calibrate)
        return self

    def call(self, index: int = 0, batch: Any = None) -> tuple[Any, Any]:
        """Run one micro-batch, and return (loss, grad_norm)."""
        with calling_quietly("LoraTraining((x, labels))"):
            result = self.training(self.problem.batch(index) if batch is None else batch)
        require(
            isinstance(result, tuple) and len(result) == 2,
            f"LoraTraining((x, labels)) returned {_shown(result)}: expected (loss, grad_norm)",
        )
        return result[0], result[1]

    def judge_gradients(self, divided: float | None = None, **options: Any) -> float | None:
        """Judge the accumulated gradient of every adapter."""
        expected = self.problem.gradients(self.case.steps if divided is None else divided, **options)
        return worst(*(judge(self.adapters[name].grad, e) for name, e in expected.items()))

    def gradient_left(self) -> str | None:
        """The name of an adapter with a gradient that is neither None nor zero."""
        return next((n for n, p in self.adapters.items() if p.grad is not None and p.grad.any()), None)


def _shown(result: Any) -> str:
    return f"a tuple of {len(result)}" if isinstance(result, tuple) else f"a {type(result).__name__}"
