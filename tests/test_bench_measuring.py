"""`loraspec bench`: counts of operations and bytes, the order of timing, clocks and memory figures are right."""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from conformance.bench import clock, measurement, memory, work
from conformance.bench.layers import Operands, Problem
from conformance.bench.measured_case import Spread
from conformance.bench.measurement import Pace, Turn
from tests.support.timed_targets import CEILINGS, SIZE, K, M, N, R, contender, layer_of, measured, twice


def test_the_formula_for_flops_agrees_with_torchs_count() -> None:
    found = measured(contender())
    frozen, adapted = (sum(w.flops for w in passes(SIZE, 4)) for passes in (work.frozen, work.adapted))
    assert frozen == 4 * M * K * N
    assert adapted == frozen + 6 * M * R * (K + N)
    assert found.frozen.costs.flops_counted == frozen
    assert found.layers[0].costs.flops_counted == adapted


def test_each_pass_counts_the_bytes_of_every_operand_once() -> None:
    x, g, weight, bias, adapter = M * K, M * N, N * K, N, R * (K + N)
    forward, backward = work.frozen(SIZE, 2)
    assert forward.bytes == 2 * (x + weight + bias + M * N)
    assert backward.bytes == 2 * (g + weight + M * K)
    forward, backward = work.adapted(SIZE, 2)
    assert forward.bytes == 2 * (x + weight + bias + adapter + M * N)
    assert backward.bytes == 2 * (g + weight + adapter + x + M * K + adapter)  # reads g, W, A, B, x; writes dX, dA, dB


def test_the_roofline_takes_the_slower_of_flops_and_bytes_in_each_pass() -> None:
    bound_by_operations, bound_by_bytes = work.Work(5 * 10**9, 10**7), work.Work(10**6, 3 * 10**8)
    assert CEILINGS.least_seconds((bound_by_operations, bound_by_bytes), "float32") == 5 + 3
    assert CEILINGS.least_seconds((bound_by_operations, bound_by_bytes), "bfloat16") == 2.5 + 3


def test_work_done_twice_is_counted_twice_and_credited_once() -> None:
    (row,) = measured(contender(twice)).layers
    costs = row.costs
    adapted = work.adapted(SIZE, 4)
    needed = sum(w.flops for w in adapted)
    assert costs.flops_counted == 2 * needed
    assert costs.flops_per_second * costs.seconds == pytest.approx(needed)
    assert costs.bytes_per_second * costs.seconds == pytest.approx(sum(w.bytes for w in adapted))
    assert costs.of_flops_ceiling == pytest.approx(costs.flops_per_second / 1e9)
    assert costs.of_bytes_ceiling == pytest.approx(costs.bytes_per_second / 1e8)
    assert costs.over_roofline == pytest.approx(costs.seconds / CEILINGS.least_seconds(adapted, "float32"))


class Machine:
    """A fake clock: the layers take 1, 2 and 3 seconds, and ten times as long in the second round."""

    def __init__(self, patch: pytest.MonkeyPatch, turns: dict[str, Turn]) -> None:
        self.names = {turn.layer: name for name, turn in turns.items()}
        self.seen: list[str] = []
        self.durations = dict(zip(turns, (1.0, 2.0, 3.0), strict=True))
        for name, turn in turns.items():
            turn.layer.register_forward_hook(lambda *_, name=name: self.seen.append(name))
        patch.setattr(clock, "calls", lambda *_: 1)
        patch.setattr(clock, "seconds", self.seconds)

    def seconds(self, step: Any, *_: Any) -> float:
        step()
        turn = len(self.seen) - 1 - len(self.durations)  # each layer has run once to warm up
        return self.durations[self.seen[-1]] * (10 if turn // 3 == 1 else 1)


def test_layers_are_timed_in_turns_and_compared_within_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem(SIZE, "float32")
    operands = Operands(problem)
    turns = {name: Turn(contender().built(problem, operands), nullcontext) for name in ("first", "second", "third")}
    machine = Machine(monkeypatch, turns)
    times = measurement.interleaved(turns, operands, "cpu", Pace(rounds=3))
    a, b, c = turns
    assert machine.seen == [a, b, c, a, b, c, b, c, a, c, a, b]
    assert times == {"first": [1, 10, 1], "second": [2, 20, 2], "third": [3, 30, 3]}
    assert measurement.spread(times["third"], times["second"]) == Spread(1.5, (1.5, 1.5))


def test_a_ratio_has_its_quartiles() -> None:
    assert measurement.spread([1, 2, 3, 4, 5, 6, 7], [1] * 7) == Spread(4, (2, 6))
    assert measurement.spread([2, 4], [1, 4]).median == 1.5


def test_the_cpu_clock_calls_a_step_the_given_number_of_times() -> None:
    seen: list[int] = []
    for number in (5, 50):
        assert clock.seconds(lambda: seen.append(number), "cpu", number, 1.0) > 0  # noqa: B023
    assert seen.count(50) - seen.count(5) == 45
    assert clock.calls(lambda: sum(range(1000)), "cpu", 0.0) == 1
    assert clock.calls(lambda: None, "cpu", 0.01) > 10


def test_the_gpu_clock_is_tritons_do_bench(monkeypatch: pytest.MonkeyPatch) -> None:
    import triton.testing

    real = inspect.signature(triton.testing.do_bench)
    asked: list[dict[str, Any]] = []

    def do_bench(*given: Any, **options: Any) -> float:
        asked.append(real.bind(*given, **options).arguments)
        return 3.0  # milliseconds

    monkeypatch.setattr(triton.testing, "do_bench", do_bench)
    assert clock.seconds(int, "cuda", 1, 0.02) == clock.fastest(int, "cuda:1", 0.5) == 0.003
    assert asked == [
        {"fn": int, "warmup": 10, "rep": 20, "return_mode": "median"},
        {"fn": int, "warmup": 250, "rep": 500, "return_mode": "min"},
    ]
    assert clock.calls(int, "cuda", 1.0) == 1


class Keeping(torch.autograd.Function):
    """Keeps a tensor for backward that autograd's saved-tensor hooks do not see."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.kept = x.new_zeros(1000)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * ctx.kept[0]


def test_memory_is_exact_for_known_layers() -> None:
    layer, operands = layer_of(Problem(SIZE, "float32"))
    x, g = operands.x, operands.g
    assert memory.saved_bytes(operands.frozen, x) == 0
    assert memory.peak_bytes(operands.frozen, x, g) == 4 * (M * N + M * K)  # y and dX
    assert memory.saved_bytes(layer, x) == 4 * M * R
    half, operands = layer_of(Problem(SIZE, "bfloat16"))
    assert memory.saved_bytes(half, operands.x) == 2 * M * R


def test_a_storage_is_counted_once_and_a_hidden_tensor_only_in_the_peak() -> None:
    _, operands = layer_of(Problem(SIZE, "float32"))
    x, g = operands.x, operands.g

    def squared(x: Tensor, weight: Tensor, *_: Any, **__: Any) -> Tensor:
        z = F.linear(x, weight)
        return z * z.view_as(z)

    layer, _ = layer_of(Problem(SIZE, "float32"), squared)
    assert memory.saved_bytes(layer, x) == 4 * M * N
    hiding, _ = layer_of(Problem(SIZE, "float32"), lambda x, *rest: F.linear(Keeping.apply(x), rest[0]))
    assert memory.saved_bytes(hiding, x) == 0
    assert memory.peak_bytes(hiding, x, g) >= 4 * (1000 + M * N + M * K)


def test_the_peak_does_not_add_up_freed_tensors() -> None:
    def freeing(x: Tensor, weight: Tensor, *_: Any, **__: Any) -> Tensor:
        for _ in range(3):
            x.new_empty(4000)  # freed at once
        return F.linear(x, weight)

    layer, operands = layer_of(Problem(SIZE, "float32"), freeing)
    assert memory.peak_bytes(layer, operands.x, operands.g) == 4 * 4000
