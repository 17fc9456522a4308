"""A run of the target's `LoraTrainer` over the network of these cases, with dropout, AdamW and a scheduler."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from conformance.cases.case import Space
from conformance.clauses.training.closed_form_network import ADAPTERS, Problem, StepCase, weighted_sum
from conformance.judgement.outcomes import require
from conformance.target.expected_errors import calling_quietly
from conformance.target.subject import Subject

TRAINER = ("LoraTrainer",)


@dataclass(frozen=True)
class TrainerCase(StepCase):
    """A run of a LoraTrainer; `calls` is the number of batches of an epoch.

    Fields:
        mode: the mode of the remote products; `torch` needs no compiling.
        epochs: epochs of the run.   cut: epochs before it is interrupted.   dropout: of the adapters.
    """

    mode: str = "torch"
    epochs: int = 2
    cut: int = 1
    dropout: float = 0.0


TRAINERS = Space(TrainerCase, m=(2, 3), k=(2, 4), h=(3, 5), n=(2, 3), r=(1, 2))
TRAINED = TRAINERS.narrowed(steps=(2, 1), calls=(3, 2), clip=(0.0, 0.5), dropout=(0.25,))


class Batches:
    """Batches that can be iterated again; `epochs` counts how often they were."""

    def __init__(self, held: list[Any]) -> None:
        self.held, self.epochs = held, 0

    def __iter__(self) -> Iterator[Any]:
        self.epochs += 1
        return iter(self.held)

    def __len__(self) -> int:
        return len(self.held)


class TrainerRun:
    """A LoraTrainer of the target with its network, optimiser and batches; equal cases begin equally.

    Args:
        optimizer: the optimiser of the adapters; None for AdamW with a scheduler.
        scheduler: the scheduler of a given optimiser, or None.
        problem: the network and batches; None for those of the case.
        options: further arguments of LoraTrainer.
    """

    def __init__(
        self,
        subject: Subject,
        case: TrainerCase,
        *,
        optimizer: Any = None,
        scheduler: Any = None,
        problem: Problem | None = None,
        **options: Any,
    ) -> None:
        self.case, self.problem = case, problem or Problem(case, subject.device)
        torch.manual_seed(case.seed)
        self.net: Any = self.problem.net()
        for adapted in (self.net.inner, self.net.outer):
            adapted.lora_dropout.p = case.dropout
        self.batches = Batches([self.problem.batch(index) for index in range(case.calls)])
        self.adapters = {name: self.net.get_parameter(f"{name}.weight") for name in ADAPTERS}
        parameters = list(self.adapters.values())
        self.optimizer = torch.optim.AdamW(parameters, lr=0.05) if optimizer is None else optimizer(parameters)
        if optimizer is None:
            scheduler = lambda built: torch.optim.lr_scheduler.StepLR(built, 2, 0.5)  # noqa: E731
        rates = None if scheduler is None else scheduler(self.optimizer)
        with calling_quietly("LoraTrainer(model, optimizer, loss_fn, lr_scheduler, training_args)"):
            self.trainer = subject.thing(self.net, self.optimizer, weighted_sum, rates, self.arguments, **options)
        # a trainer that cannot be compiled has whole models, and one mode
        self.mode = {"fhe": case.mode} if hasattr(self.trainer, "compile") else {}
        if self.mode.get("fhe", "torch") != "torch":
            with calling_quietly("LoraTrainer.compile((x, labels))"):
                self.trainer.compile(self.problem.batch())

    @property
    def arguments(self) -> dict[str, Any]:
        """The training_args of the case."""
        return {"gradient_accumulation_steps": self.case.steps, "max_grad_norm": self.max_grad_norm}

    @property
    def max_grad_norm(self) -> float | None:
        """The limit of the gradients' norm for the case's `clip`."""
        return self.case.clip * self.problem.norm(self.case.steps) if self.case.clip else None

    def train(self, epochs: int) -> TrainerRun:
        """Train until so many epochs are finished."""
        said = "".join(f", {name}={value!r}" for name, value in self.mode.items())
        with calling_quietly(f"LoraTrainer.train(batches, {epochs}{said})"):
            self.trainer.train(self.batches, epochs, **self.mode)
        return self

    def load(self) -> TrainerRun:
        """Continue the last checkpoint."""
        with calling_quietly("LoraTrainer.load_checkpoint()"):
            self.trainer.load_checkpoint()
        return self

    def state(self) -> dict[str, Tensor]:
        """The values that training changes, by name: adapters, learning rate, the optimiser's averages."""
        found = {name: parameter.detach().clone() for name, parameter in self.adapters.items()}
        found["the learning rate"] = torch.tensor(self.optimizer.param_groups[0]["lr"], dtype=torch.float64)
        for name, parameter in self.adapters.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                found[f"{key} of {name}"] = torch.as_tensor(value).clone()
        return found

    def require_state(self, expected: dict[str, Tensor], what: str) -> None:
        """Require the expected state bit for bit."""
        found = self.state()
        for name, value in expected.items():
            same = name in found and torch.equal(found[name], value)
            require(same, f"{what}: {name} differs")
