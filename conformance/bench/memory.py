"""The memory of a step: the bytes that forward saves for backward, and the peak."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from conformance.bench.layers import step


def saved_bytes(layer: nn.Module, x: Tensor) -> int:
    """The bytes that forward saves for backward, without x, parameters and buffers; each storage counts once.

    The count covers tensors saved by autograd. It misses tensors kept as attributes of a context; the peak counts them.
    """
    known = {t.untyped_storage().data_ptr() for t in (x, *layer.parameters(), *layer.buffers())}
    storages: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in known:
            storages[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = layer(x)
    del y
    return sum(storages.values())


def peak_bytes(layer: nn.Module, x: Tensor, g: Tensor) -> int:
    """The peak memory of one forward and backward pass, minus the memory in use before."""
    if x.is_cuda:
        torch.cuda.reset_peak_memory_stats(x.device)
        before = torch.cuda.memory_allocated(x.device)
        step(layer, x, g)
        return torch.cuda.max_memory_allocated(x.device) - before
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with _profiler_silent(), torch.profiler.profile(activities=cpu, profile_memory=True) as profile:
        step(layer, x, g)
    held = peak = 0
    events: Any = profile.profiler.kineto_results.events()
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@contextmanager
def _profiler_silent() -> Iterator[None]:
    """Suppress the lines that the profiler's library writes to standard error at each start and stop."""
    sys.stderr.flush()
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)
