"""Calls that raise part-way: they leave everything as it was, so that they can be repeated."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from conformance.cases.case import Space
from conformance.clauses.training.closed_form_network import ONE, StepCase, weighted_sum
from conformance.clauses.training.session import Session
from conformance.isolation.process_state import RANDOM, changes, taken
from conformance.judgement.outcomes import Violation, require
from conformance.specification.clause import clause
from conformance.target.expected_errors import quiet
from conformance.target.subject import Subject


class FaultError(RuntimeError):
    """The error that a case provokes."""


@dataclass(frozen=True)
class FailureCase(StepCase):
    """Calls of a LoraTraining, one of which raises.

    Fields:
        how: where it raises: in `forward`, `loss`, `backward`, or in or after the `optimiser`'s or `scheduler`'s step.
        optimizer: `sgd`, `momentum`, `adamw`.   before: micro-batches of the same window before the one that fails.
        windows: finished accumulation windows before that.
    """

    how: str = "forward"
    optimizer: str = "sgd"
    before: int = 0
    windows: int = 0


PLACES = ("backward", "forward", "loss", "optimiser", "scheduler", "before the optimiser", "before the scheduler")
FAILURES = Space(
    FailureCase,
    m=(1, 2, 3),
    k=(1, 2, 4),
    h=(2, 3, 5),
    n=(1, 2, 3),
    r=(1, 2),
    values=("normal",),
    clip=(0.0, 0.5),
    calls=(4,),
    how=PLACES,
    optimizer=("adamw", "momentum", "sgd"),
    before=(1, 0, 2),
    windows=(0, 1),
)


class Breaks(torch.autograd.Function):
    """The identity, whose backward raises."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ARG004  (torch's signature)
        """The same values."""
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, d_y: Tensor) -> Tensor:  # noqa: ARG004
        """Raise."""
        raise FaultError("in backward")


class Training:
    """A session with dropout, a buffer that counts calls, and a fault that can be switched on.

    Attributes:
        fault: the place that raises, or an empty string.
    """

    def __init__(self, subject: Subject, case: FailureCase) -> None:
        self.case, self.fault, self.index = case, "", 0
        self.session = Session(subject, case)
        net = self.session.net
        for layer in (net.inner, net.outer):
            layer.lora_dropout.p = 0.5
        net.register_buffer("calls", torch.zeros(3))
        net.register_forward_pre_hook(_count)
        # by then inner has drawn its mask, and outer's adapter has its gradient before inner's backward
        net.inner.register_forward_hook(self._after_inner)
        parameters = list(self.session.adapters.values())
        self.optimizer = self._failing(parameters)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1 / (1 + step))
        self._fail_in(self.scheduler, "scheduler")
        self.session.configure(optimizer=False, lr_scheduler=self.scheduler, loss_fn=self._loss)
        self.session.training.optimizer = self.optimizer

    def _failing(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        kinds: dict[str, Any] = {
            "sgd": lambda: torch.optim.SGD(parameters, lr=0.25),
            "momentum": lambda: torch.optim.SGD(parameters, lr=0.25, momentum=0.5),
            "adamw": lambda: torch.optim.AdamW(parameters, lr=0.25, amsgrad=True),
        }
        optimizer: torch.optim.Optimizer = kinds[self.case.optimizer]()
        self._fail_in(optimizer, "optimiser")
        return optimizer

    def _fail_in(self, stepper: Any, name: str) -> None:
        """Let a stepper's step raise, before or after it has changed anything."""
        step = stepper.step

        def failing(*args: Any, **options: Any) -> Any:
            self._raise_at(f"before the {name}")
            result = step(*args, **options)
            self._raise_at(name)
            return result

        failing._wrapped_by_lr_sched = True  # type: ignore[attr-defined]  # the mark that torch's schedulers look for
        stepper.step = failing

    def _raise_at(self, place: str) -> None:
        if self.fault == place:
            raise FaultError(f"in {place}")

    def _after_inner(self, _: nn.Module, __: Any, out: Tensor) -> Tensor:
        self._raise_at("forward")
        broken: Tensor = Breaks.apply(out) if self.fault == "backward" else out  # type: ignore[no-untyped-call]
        return broken

    def _loss(self, out: Tensor, labels: Tensor) -> Tensor:
        noise = random.random() + float(np.random.standard_normal())
        self._raise_at("loss")
        return weighted_sum(out, labels) * (1 + noise / 8)

    def call(self, *, steps: bool) -> None:
        """Train on the next micro-batch; with `steps` the call ends with a step."""
        self.session.toggle(run_optimizer=steps).call(self.index % self.case.calls)
        self.index += 1

    def go(self) -> Training:
        """Train until the call that the case is about."""
        for _ in range(self.case.windows):
            self.call(steps=True)
        for _ in range(self.case.before):
            self.call(steps=False)
        return self

    def state(self) -> dict[str, Any]:
        """What a call may change, by name: values, gradients, states of optimiser and scheduler."""
        net = self.session.net
        found: dict[str, Any] = {name: value.detach().clone() for name, value in net.state_dict().items()}
        for name, parameter in self.session.adapters.items():
            none = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.detach().clone()
            found[f"the gradient of {name}"] = none
        for i, parameter in enumerate(self.session.adapters.values()):
            for key, value in sorted(self.optimizer.state.get(parameter, {}).items()):
                found[f"{key} of the optimiser's parameter {i}"] = torch.as_tensor(value).clone()
        found["the learning rate"] = self.optimizer.param_groups[0]["lr"]
        found["the scheduler's count"] = self.scheduler.last_epoch
        return found


def _count(module: Any, _: Any) -> None:
    module.calls.add_(1.0)


@clause(
    "TRN-FAILED",
    sentence="""A call that raises in forward, in the loss, in backward, or in a step of the optimiser or scheduler
    leaves parameters, gradients, buffers, the states of optimiser and scheduler, and random states as they were; the
    repeated call then gives the same result, bit for bit, as if no call had failed.""",
    why="A run that skips or repeats a failed batch would otherwise train on half of its gradients, silently.",
    cases=FAILURES,
    dtypes=ONE,
    weight=0.67,
)
def test_failed_call(subject: Subject, case: FailureCase) -> None:
    seeds = (random.seed, np.random.seed, torch.manual_seed)
    for seed in seeds:
        seed(case.seed)
    whole = Training(subject, case).go()
    whole.call(steps=True)
    for seed in seeds:
        seed(case.seed)
    training = Training(subject, case).go()
    before, settings = training.state(), taken(RANDOM)
    training.fault = case.how
    training.session.toggle(run_optimizer=True)
    _require_raises(training)
    drawn = changes(settings)
    _require_same(training.state(), before, "a call that raised changed")
    require(not drawn, f"a call that raised in {case.how} changed {', '.join(drawn)}")
    training.fault = ""
    training.call(steps=True)
    _require_same(training.state(), whole.state(), "the repeated call gave another result in")


def _require_raises(training: Training) -> None:
    try:
        with quiet():
            training.session.training(training.session.problem.batch(training.index % training.case.calls))
    except Exception:  # noqa: BLE001  (the target may wrap the fault)
        return
    raise Violation(f"a call raised nothing although its {training.fault} did")


def _require_same(found: dict[str, Any], expected: dict[str, Any], what: str) -> None:
    for name in {**expected, **found}:
        one, other = found.get(name), expected.get(name)
        same = torch.equal(one, other) if isinstance(one, Tensor) and isinstance(other, Tensor) else one == other
        require(same, f"{what} {name}")
