"""The clocks: `torch.utils.benchmark` on a CPU, `triton.testing.do_bench` on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.benchmark import Timer

Step = Callable[[], Any]


def calls(step: Step, device: str, duration: float) -> int:
    """The number of calls that take about `duration`, after three warm-up calls; 1 on a GPU, where do_bench chooses."""
    if device != "cpu":
        return 1
    _timer(step).timeit(3)
    return max(1, round(duration / _timer(step).timeit(3).median))


def seconds(step: Step, device: str, number: int, duration: float) -> float:
    """The time of one call: on a CPU the mean of `number` calls, on a GPU the median of the calls within `duration`."""
    if device != "cpu":
        return _on_gpu(step, duration, "median")
    return float(_timer(step).timeit(number).median)


def fastest(step: Step, device: str, duration: float) -> float:
    """The shortest time of one call among the calls within `duration`."""
    if device != "cpu":
        return _on_gpu(step, duration, "min")
    _timer(step).timeit(3)
    return float(min(_timer(step).blocked_autorange(min_run_time=duration).times))


def _timer(step: Step) -> Timer:
    # the timer would otherwise set the number of threads to one
    return Timer("step()", globals={"step": step}, num_threads=torch.get_num_threads())


def _on_gpu(step: Step, duration: float, mode: str) -> float:
    from triton.testing import do_bench

    milliseconds: Any = do_bench(step, warmup=round(500 * duration), rep=round(1000 * duration), return_mode=mode)
    return float(milliseconds) / 1e3
