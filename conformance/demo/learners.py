"""A model with one target's adapters, and its training step, which is the same for this project's targets and PEFT."""

from __future__ import annotations

import copy
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

import reference
from conformance.demo.fine_tuning import Batch, FineTuning

MAX_GRAD_NORM = 1.0


@dataclass
class Run:
    """The results of one target.

    Attributes:
        losses: loss of each window before its step.   norms: gradient norm of each window before clipping.
        seconds: seconds of each step.   trained: number of trained parameters.
    """

    target: str
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    trained: int = 0


def start(task: FineTuning, folder: Path) -> None:
    """Save the initial adapters of all targets in PEFT's layout; `lora_B` is zero."""
    model = copy.deepcopy(task.model)
    config = reference.PeftConfig(target_modules=task.targets, dim=task.rank, alpha=task.alpha)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(task.rank)
        reference.apply_lora_to_linear_modules(model, config)
    reference.save_adapter(model, config, folder)


class Learner:
    """One target's model, optimiser and schedule: AdamW on clipped gradients, with a rate that falls to a tenth.

    Args:
        target: `peft`, or the name of `parts`.   parts: a module with load_adapter and save_adapter; None for PEFT.
        start: the folder with the initial adapters.   steps: length of the schedule.
    """

    def __init__(self, task: FineTuning, target: str, parts: Any, start: Path, steps: int) -> None:
        self.task, self.parts, self.run = task, parts, Run(target)
        model = copy.deepcopy(task.model)
        self.config: Any = None
        if parts is None:
            self.model = _by_peft(model, start)
        else:
            self.config = parts.load_adapter(model, start)
            self.model = model.train()
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.run.trained = sum(p.numel() for p in self.trained)
        self.clip = getattr(parts, "clip_grad_norm_", nn.utils.clip_grad_norm_)
        self.optimizer = torch.optim.AdamW(self.trained, lr=task.learning_rate)
        self.schedule = torch.optim.lr_scheduler.LinearLR(self.optimizer, 1.0, 0.1, steps)

    def step(self, window: list[Batch]) -> None:
        """Accumulate the gradient of the mean loss over a window's texts, micro-batch by micro-batch; clip and step."""
        began = time.perf_counter()
        texts = sum(len(labels) for _, labels in window)
        total = 0.0
        for batch in window:
            loss = self.task.loss_sum(self.model, batch) / texts
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        norm = self.clip(self.trained, MAX_GRAD_NORM)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        self.run.seconds.append(time.perf_counter() - began)
        self.run.losses.append(total)
        self.run.norms.append(float(norm))

    def save(self, folder: Path) -> None:
        """Save the trained adapters in PEFT's layout."""
        if self.parts is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PEFT warns about a base model that is not on the hub
                # by default PEFT also saves a frozen lm_head
                self.model.save_pretrained(str(folder), save_embedding_layers=False)
        else:
            self.parts.save_adapter(self.model, self.config, folder)


def _by_peft(model: nn.Module, start: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the import warns about the environment
        from peft import PeftModel

        return PeftModel.from_pretrained(model, str(start), is_trainable=True).train()
