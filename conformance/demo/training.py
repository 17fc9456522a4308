"""One training run in one mode; all runs start from the same state."""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from conformance.demo.recording import RecordingBackend, Traffic
from conformance.demo.tasks import Task

MAX_GRAD_NORM = 1.0
ENCRYPTED = ("execute", "remote")
MODEL_NAME = "demo"


@dataclass
class Run:
    """The results of one mode.

    Attributes:
        losses, seconds, cpu_seconds: values of each step; cpu_seconds excludes a server.
        up, down: bytes of encrypted inputs and results in a step.   products: encrypted products in a step.
        evaluation_key: bytes of the evaluation key, sent once.
        adapters: SHA-256 of all trained parameters after the last step.
    """

    mode: str
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    up: int = 0
    down: int = 0
    products: int = 0
    evaluation_key: int = 0
    adapters: str = ""


def split(task: Task, implementation: Any, recorder: RecordingBackend, server: Any = None) -> Any:
    """A copy of the task's model with remote frozen products: a HybridFHEModel of a LoraTraining, not yet compiled.

    Args:
        server: the `RemoteClient` of mode remote.
    """
    training = implementation.LoraTraining(copy.deepcopy(task.model))
    _configure(training, task)
    names = implementation.get_remote_names(training)
    made = implementation.HybridFHEModel
    return made(training, names, server, MODEL_NAME, backend=recorder, noise_seed=task.seed)


def compile_model(hybrid: Any, task: Task) -> None:
    """Quantise the remote modules, calibrated on the first batch."""
    hybrid.compile_model(task.batches[0], n_bits=task.n_bits)


def save(task: Task, implementation: Any, recorder: RecordingBackend, folder: Path) -> None:
    """Save the server's and the client's part of the model, like the model's owner before training."""
    hybrid = split(task, implementation, recorder)
    compile_model(hybrid, task)
    hybrid.save_and_clear_private_info(folder)


def train(task: Task, mode: str, hybrid: Any, recorder: RecordingBackend, advance: Callable[[], object]) -> Run:
    """Train on every batch of the task.

    Args:
        hybrid: a model from `split`, compiled or loaded, with keys if the mode encrypts.
        recorder: the model's backend.   advance: called after each step.
    """
    run = Run(mode)
    recorder.traffic = Traffic()
    for batch in task.batches:
        began, cpu_began = time.perf_counter(), time.process_time()
        loss, _ = hybrid(batch, fhe=mode)
        run.seconds.append(time.perf_counter() - began)
        run.cpu_seconds.append(time.process_time() - cpu_began)
        run.losses.append(float(loss.detach()))
        advance()
    steps, traffic = len(task.batches), recorder.traffic
    run.up, run.down, run.products = (n // steps for n in (traffic.up, traffic.down, traffic.products))
    if mode in ENCRYPTED:
        run.evaluation_key = len(hybrid.keys.evaluation)
    run.adapters = _digest(hybrid.model)
    return run


def _configure(training: Any, task: Task) -> None:
    trained = [p for p in training.inference_model.parameters() if p.requires_grad]
    training.update_training_parameters(
        optimizer=torch.optim.Adam(trained, lr=task.learning_rate),
        loss_fn=task.loss,
        training_args={"max_grad_norm": MAX_GRAD_NORM},
    )
    training.toggle_run_optimizer(True)


def _digest(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for parameter in model.parameters():
        if parameter.requires_grad:
            digest.update(parameter.detach().numpy().tobytes())
    return digest.hexdigest()
