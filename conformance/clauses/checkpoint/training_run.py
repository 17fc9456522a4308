"""A training run that can be interrupted: its model, optimiser and data, rebuilt wherever it is resumed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conformance.cases.case import Case, Space
from conformance.clauses.model.target_calls import make_config
from conformance.judgement.outcomes import require
from conformance.target.expected_errors import calling_quietly
from conformance.target.subject import Subject

CALLS = 5  # micro-batches of a run
NEEDS = ("save_training", "load_training", "LoraTraining")


@dataclass(frozen=True)
class RunCase(Case):
    """A run of micro-batches that is interrupted.

    Fields:
        cut: the number of micro-batches before the save.   steps: gradient_accumulation_steps.
        optimizer, scheduler: their names; `none` for no scheduler.
        rank, dropout: options of the adapters; dropout draws random numbers.   clip: max_grad_norm, 0 for none.
        how: the variant, where a clause has several.
    """

    cut: int = 0
    steps: int = 1
    optimizer: str = "sgd"
    scheduler: str = "none"
    rank: int = 2
    dropout: float = 0.0
    clip: float = 0.0
    how: str = ""


RUNS = Space(
    RunCase,
    cut=(2, 1, 3, 4),
    steps=(2, 1, 3),
    optimizer=("adamw", "momentum", "amsgrad", "sgd"),
    scheduler=("cosine", "none", "step", "onecycle"),
    dropout=(0.25, 0.0),
    clip=(0.0, 0.5),
)


class Net(nn.Module):
    """Linear layers and a norm with running statistics, so that training changes buffers too."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.norm = nn.BatchNorm1d(6)
        self.q_proj = nn.Linear(6, 6)
        self.v_proj = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.v_proj(torch.relu(self.q_proj(self.norm(self.first(x)))))  # type: ignore[no-any-return]


class Run:
    """A run in one process: the target's LoraTraining over a model made from the case."""

    def __init__(self, subject: Subject, case: RunCase) -> None:
        self.case = case
        torch.manual_seed(case.seed)
        self.net = Net().to(subject.device, dtype=getattr(torch, case.dtype)).train()
        options: dict[str, Any] = {"dim": case.rank, "alpha": 4, "dropout": case.dropout, "target_modules": ["*_proj"]}
        config = make_config(subject, **options)
        with calling_quietly("apply_lora_to_linear_modules and LoraTraining"):
            subject.target.apply_lora_to_linear_modules(self.net, config)
            self.training = subject.target.LoraTraining(self.net)
        self.optimizer = optimizer_of(case, self.net)
        self.scheduler = scheduler_of(case, self.optimizer)
        arguments = {"gradient_accumulation_steps": case.steps, "max_grad_norm": case.clip or None}
        with calling_quietly("update_training_parameters"):
            self.training.update_training_parameters(self.optimizer, self.scheduler, F.mse_loss, arguments)
        self.done = 0

    def go(self, until: int) -> Run:
        """Train on the next micro-batches, until so many are done."""
        for index in range(self.done, until):
            self.training.toggle_run_optimizer((index + 1) % self.case.steps == 0)
            generator = torch.Generator().manual_seed(1000 * self.case.seed + index)
            x, y = (torch.randn(5, size, generator=generator, dtype=torch.float64) for size in (4, 3))
            weight = self.net.norm.weight  # the linear layers may be remote modules
            with calling_quietly("LoraTraining((x, labels))"):
                self.training((x.to(weight), y.to(weight)))
        self.done = until
        return self

    def state(self) -> dict[str, Any]:
        """The state of a run by name: parameters, buffers, gradients, optimiser state, learning rates."""
        found: dict[str, Any] = {name: value.detach().clone() for name, value in self.net.state_dict().items()}
        for name, parameter in self.net.named_parameters():
            if parameter.requires_grad:
                zero = torch.zeros_like(parameter)
                found[f"the gradient of {name}"] = zero if parameter.grad is None else parameter.grad.clone()
        for i, held in enumerate(self.optimizer.state.values()):
            for key, value in sorted(held.items()):
                found[f"{key} of the optimiser's parameter {i}"] = torch.as_tensor(value).clone()
        for i, group in enumerate(self.optimizer.param_groups):
            found[f"the learning rate of group {i}"] = torch.tensor(group["lr"], dtype=torch.float64)
        return found


def optimizer_of(case: RunCase, net: nn.Module) -> torch.optim.Optimizer:
    """The case's optimiser, with two groups of parameters."""
    trainable = {name: p for name, p in net.named_parameters() if p.requires_grad}
    groups: list[dict[str, Any]] = [
        {"params": [p for name, p in trainable.items() if "lora_A" in name]},
        {"params": [p for name, p in trainable.items() if "lora_A" not in name], "lr": 0.02},
    ]
    if case.optimizer in ("adamw", "amsgrad"):
        return torch.optim.AdamW(groups, lr=0.05, amsgrad=case.optimizer == "amsgrad")
    return torch.optim.SGD(groups, lr=0.05, momentum=0.9 if case.optimizer == "momentum" else 0.0)


def scheduler_of(case: RunCase, optimizer: torch.optim.Optimizer) -> Any:
    """The case's scheduler, or None."""
    kinds = torch.optim.lr_scheduler
    if case.scheduler == "cosine":
        return kinds.CosineAnnealingLR(optimizer, T_max=CALLS)
    if case.scheduler == "step":
        return kinds.MultiStepLR(optimizer, milestones=[1, 2, 5], gamma=0.5)
    if case.scheduler == "onecycle":
        return kinds.OneCycleLR(optimizer, max_lr=0.1, total_steps=CALLS + 1)
    return None


def require_state(run: Run, expected: dict[str, Any], what: str) -> None:
    """Require that the state of a run is the expected one bit for bit."""
    found = run.state()
    for name, value in expected.items():
        require(name in found, f"{what}: {name} is gone")
        same = found[name].dtype == value.dtype and torch.equal(found[name].nan_to_num(), value.nan_to_num())
        require(same, f"{what}: {name} differs")
    extra = sorted(set(found) - set(expected))
    require(not extra, f"{what}: {', '.join(extra)} should not be there")
