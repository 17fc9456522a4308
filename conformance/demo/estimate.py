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


@dataclass
class Estimate:
    """An estimate and its basis.

    Attributes:
        seconds, cpu_seconds, up, down: cost of one step, the last two in bytes: rows times the cost of one row.
        rows: number of rows of all products of a step.   cells: sum of rows times output columns.
        measured: for each shape of product, K and N, its rows in a step, and the seconds for one row.
    """

    seconds: float
    cpu_seconds: float
    up: int
    down: int
    rows: int
    cells: int
    measured: list[dict[str, float]]


def estimate(task: Task, hybrid: Any, recorder: RecordingBackend, keys: Keys) -> Estimate:
    """Count the rows of one float step by shape, and encrypt, multiply and decrypt one row of each shape.

    Args:
        hybrid: the task's model, which takes a step.   recorder: any backend.   keys: the backend's keys.
    """
    found = Estimate(0.0, 0.0, 0, 0, 0, 0, [])
    _one_row(recorder, keys, 1, 1, 2**task.n_bits)  # the first product loads the evaluation key
    for (features, columns), rows in sorted(_rows(task, hybrid).items()):
        recorder.traffic = Traffic()
        seconds, cpu_seconds = _one_row(recorder, keys, features, columns, 2**task.n_bits)
        found.measured.append(
            {"K": features, "N": columns, "rows": rows, "seconds": seconds, "cpu_seconds": cpu_seconds}
        )
        found.seconds += rows * seconds
        found.cpu_seconds += rows * cpu_seconds
        found.up += rows * recorder.traffic.up
        found.down += rows * recorder.traffic.down
        found.rows += rows
        found.cells += rows * columns
    return found


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
