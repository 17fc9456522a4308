"""An estimate of an encrypted training step from one row of each of its products, for models too large to run."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch

from conformance.demo.recording import RecordingBackend, Traffic
from conformance.demo.tasks import Task
from reference.encrypted.encryption import Keys


@dataclass(frozen=True)
class MeasuredProduct:
    """A shape of product [rows, K] · [K, N]: its rows in a step, and the seconds for one row."""

    K: int
    N: int
    rows: int
    seconds: float
    cpu_seconds: float


@dataclass(frozen=True)
class Estimate:
    """An estimate and its basis.

    Attributes:
        seconds, cpu_seconds: the time of one step, which is the number of rows times the time of one row.
        up, down: the bytes of one step, computed in the same way.
        rows: the rows of all products of a step.   cells: rows times output columns, summed over the products.
        measured: the product shapes of which one row was measured.
    """

    seconds: float
    cpu_seconds: float
    up: int
    down: int
    rows: int
    cells: int
    measured: tuple[MeasuredProduct, ...]


def estimate(task: Task, hybrid: Any, recorder: RecordingBackend, keys: Keys) -> Estimate:
    """Count the rows of one float step by shape, and encrypt, multiply and decrypt one row of each shape.

    Args:
        hybrid: the task's model, which takes a step.   recorder: any backend.   keys: the backend's keys.
    """
    measured, up, down = [], 0, 0
    _one_row(recorder, keys, 1, 1, 2**task.n_bits)  # the first product also loads the evaluation key
    for (features, columns), rows in sorted(_rows(task, hybrid).items()):
        recorder.traffic = Traffic()
        seconds, cpu_seconds = _one_row(recorder, keys, features, columns, 2**task.n_bits)
        measured.append(MeasuredProduct(features, columns, rows, seconds, cpu_seconds))
        up += rows * recorder.traffic.up
        down += rows * recorder.traffic.down
    return Estimate(
        seconds=sum(product.rows * product.seconds for product in measured),
        cpu_seconds=sum(product.rows * product.cpu_seconds for product in measured),
        up=up,
        down=down,
        rows=sum(product.rows for product in measured),
        cells=sum(product.rows * product.N for product in measured),
        measured=tuple(measured),
    )


def _rows(task: Task, hybrid: Any) -> Counter[tuple[int, int]]:
    """The number of rows of the remote products of one step, by (K, N)."""
    counted: Counter[tuple[int, int]] = Counter()

    def count(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        counted[module.in_features, module.out_features] += inputs[0].numel() // module.in_features

    handles = [module.register_forward_pre_hook(count) for module in hybrid.remote_modules.values()]
    try:
        hybrid(task.batches[0], fhe="torch")
    finally:
        for handle in handles:
            handle.remove()
    return counted


def _one_row(recorder: RecordingBackend, keys: Keys, features: int, columns: int, levels: int) -> tuple[float, float]:
    """The seconds and CPU seconds for the product of one row; they do not depend on the values."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randint(levels, (1, features), generator=generator)
    weight = torch.randint(-levels // 2, levels // 2, (columns, features), generator=generator)
    began, cpu_began = time.perf_counter(), time.process_time()
    result = recorder.evaluate(recorder.encrypt(q, keys), weight, keys.evaluation)
    recorder.decrypt(result, 1, columns, keys)
    return time.perf_counter() - began, time.process_time() - cpu_began
