"""Measurement of one problem: in each round every layer takes a turn, and ratios compare times of the same round."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from conformance.bench import clock, work
from conformance.bench.agreement import Agreement
from conformance.bench.batched_layers import BatchedAgreement, BatchedOperands
from conformance.bench.ceilings import Ceilings
from conformance.bench.experts import ExpertAgreement, ExpertOperands, built
from conformance.bench.layers import Contender, Operands, Problem, step
from conformance.bench.measured_case import (
    FROZEN,
    MEASURED,
    UNRANKED,
    UNSUPPORTED,
    Costs,
    LeastWork,
    MeasuredCase,
    Row,
    Spread,
)
from conformance.bench.memory import peak_bytes, saved_bytes
from conformance.bench.mixtures import AdaptedLayer, MixtureAgreement, MixtureOperands, slots_of
from conformance.bench.packed_layers import built as built_on_packed
from conformance.judgement.outcomes import Violation
from conformance.numerics.formats import dtype_named

Check = Agreement | ExpertAgreement | MixtureAgreement
WRONG = "wrong at this size, not ranked"


@dataclass(frozen=True)
class Pace:
    """The duration of a measurement: the number of rounds, and the seconds for each layer in a round."""

    rounds: int = 41
    seconds: float = 0.01


@dataclass(frozen=True)
class Turn:
    """A layer that takes a turn in every round."""

    layer: nn.Module
    running: Callable[[], AbstractContextManager[None]] = nullcontext


def measure(problem: Problem, contenders: Sequence[Contender], ceilings: Ceilings, pace: Pace) -> MeasuredCase:
    """The costs of a problem for the frozen layer and for each contender, the fastest contender first."""
    operands, agreement = _prepared(problem)
    turns = {FROZEN: Turn(operands.frozen)}
    status: dict[str, str] = {}
    for contender in contenders:
        found = _turn(contender, problem, operands, agreement)
        if isinstance(found, Turn):
            turns[contender.label] = found
        status[contender.label] = found if isinstance(found, str) else MEASURED if contender.ranked else UNRANKED
    times = interleaved(turns, operands, problem.device, pace)
    costs = {label: _costs(times, label, turn, problem, operands, ceilings) for label, turn in turns.items()}
    rows = [Row(c.label, c.target.spec, status[c.label], costs.get(c.label)) for c in contenders]
    size = problem.size
    return MeasuredCase(
        case=str(problem),
        M=size.m,
        K=size.k,
        N=size.n,
        r=size.r,
        dtype=problem.dtype,
        dropout=problem.dropout,
        dropout_position=problem.position if problem.dropout else None,
        memory_efficient=problem.memory_efficient,
        least_work=_least_work(problem),
        frozen=Row("frozen experts" if size.experts else FROZEN, None, MEASURED, costs[FROZEN]),
        layers=tuple(sorted(rows, key=lambda row: row.ratio)),
    )


def _prepared(problem: Problem) -> tuple[Any, Check]:
    """The operands of a problem, and the check of results on them."""
    if problem.adapters:
        batch = BatchedOperands(problem)
        return batch, BatchedAgreement(problem, batch)
    if problem.mixture:
        modules = MixtureOperands(problem)
        return modules, MixtureAgreement(problem, modules)
    if problem.size.experts:
        of_experts = ExpertOperands(problem)
        return of_experts, ExpertAgreement(problem, of_experts)
    operands = Operands(problem)
    return operands, Agreement(problem, operands)


def _turn(contender: Contender, problem: Problem, operands: Any, agreement: Check) -> Turn | str:
    """The turn of a contender, or the reason why it has no turn: an error of the target, or a wrong result."""
    if problem.dtype not in contender.target.dtypes:
        return UNSUPPORTED
    try:
        with contender.running():
            if problem.base:
                layer, agreement = built_on_packed(contender, problem, operands)
            elif problem.mixture:
                layer = AdaptedLayer(contender, operands)
            else:
                layer = built(contender, operands) if problem.size.experts else contender.built(problem, operands)
            turn = Turn(layer, contender.running)
            agreement.check(turn.layer)
            return turn
    except Violation as violation:
        return f"{WRONG}: {str(violation).splitlines()[0].removeprefix('worst    ')}"
    except Exception as error:  # noqa: BLE001  (whatever the target raises)
        return f"raises {type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"


def interleaved(turns: Mapping[str, Turn], operands: Any, device: str, pace: Pace) -> dict[str, list[float]]:
    """The seconds of a step of each layer in each round; each round starts with the next layer."""
    x, g = operands.x, operands.g
    for turn in turns.values():
        with turn.running():
            step(turn.layer, x, g)
    number = clock.calls(lambda: step(operands.frozen, x, g), device, pace.seconds)
    times: dict[str, list[float]] = {label: [] for label in turns}
    for index in range(pace.rounds):
        first = index % len(turns)
        for label in (*list(turns)[first:], *list(turns)[:first]):
            layer = turns[label].layer
            with turns[label].running():
                times[label].append(clock.seconds(lambda layer=layer: step(layer, x, g), device, number, pace.seconds))  # type: ignore[misc]
    return times


def _least_work(problem: Problem) -> LeastWork:
    width = dtype_named(problem.dtype).itemsize
    if problem.mixture:
        return LeastWork(*work.modules(problem.size, width, slots_of(problem.size.experts)))
    return LeastWork(work.frozen(problem.size, width), work.adapted(problem.size, width, max(1, problem.adapters)))


def _costs(
    times: Mapping[str, list[float]],
    label: str,
    turn: Turn,
    problem: Problem,
    operands: Any,
    ceilings: Ceilings,
) -> Costs:
    """The time of a layer, its ratio over every other layer, the formula's work in that time, and its memory."""
    least, seconds = _least_work(problem), statistics.median(times[label])
    passes = least.frozen if label == FROZEN else least.adapted
    flops, moved = (sum(getattr(w, name) for w in passes) / seconds for name in ("flops", "bytes"))
    x, g = operands.x, operands.g
    with turn.running():
        with FlopCounterMode(display=False) as counter:  # it does not see the operations of Triton kernels
            step(turn.layer, x, g)
        saved, peak = saved_bytes(turn.layer, x), peak_bytes(turn.layer, x, g)
    return Costs(
        seconds=seconds,
        rounds=tuple(times[label]),
        over={other: spread(times[label], times[other]) for other in times if other != label},
        flops_per_second=flops,
        of_flops_ceiling=flops / ceilings.flops[problem.dtype],
        bytes_per_second=moved,
        of_bytes_ceiling=moved / ceilings.bytes,
        over_roofline=seconds / ceilings.least_seconds(passes, problem.dtype),
        flops_counted=counter.get_total_flops(),
        saved_bytes=saved,
        peak_bytes=peak,
    )


def spread(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """The median and quartiles of the ratios of times of the same round."""
    low, middle, high = statistics.quantiles([a / b for a, b in zip(ours, theirs, strict=True)], n=4)
    return Spread(middle, (low, high))
