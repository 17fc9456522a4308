"""Measurement of one problem: in each round every layer takes a turn, and ratios compare times of the same round."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from conformance.bench import clock, work
from conformance.bench.agreement import Agreement
from conformance.bench.ceilings import Ceilings
from conformance.bench.layers import Contender, Operands, Problem, step
from conformance.bench.memory import peak_bytes, saved_bytes
from conformance.judgement.outcomes import Violation
from conformance.numerics.formats import dtype_named

FROZEN = "nn.Linear, frozen"
MEASURED = "measured"
WRONG = "wrong at this size, not ranked"
UNRANKED = "measured, not ranked"
UNSUPPORTED = "does not declare the dtype"


@dataclass(frozen=True)
class Pace:
    """The duration of a measurement: the number of rounds, and the seconds for each layer in a round."""

    rounds: int = 41
    seconds: float = 0.01


@dataclass
class Turn:
    """A layer that takes a turn in every round."""

    layer: nn.Module
    running: Callable[[], AbstractContextManager[None]] = nullcontext


def measure(problem: Problem, contenders: Sequence[Contender], ceilings: Ceilings, pace: Pace) -> dict[str, Any]:
    """The costs of the frozen layer and of each contender on one problem, as plain data; the fastest first."""
    operands = Operands(problem)
    agreement = Agreement(problem, operands)
    turns = {FROZEN: Turn(operands.frozen)}
    rows: dict[str, dict[str, Any]] = {c.label: {"label": c.label, "target": c.target.spec} for c in contenders}
    for contender in contenders:
        if problem.dtype not in contender.target.dtypes:
            rows[contender.label]["status"] = UNSUPPORTED
            continue
        with _noting(rows[contender.label]), contender.running():
            turn = Turn(contender.built(problem, operands), contender.running)
            agreement.check(turn.layer)
            turns[contender.label] = turn
    unranked = {contender.label for contender in contenders if not contender.ranked}
    times = interleaved(turns, operands, problem.device, pace)
    passes = _passes(problem)
    for label, turn in turns.items():
        with turn.running():
            row = rows.setdefault(label, {"label": label, "target": None})
            row["status"] = UNRANKED if label in unranked else MEASURED
            row |= _costs(times, label, passes[label != FROZEN], ceilings, problem.dtype)
            row |= _counted(turn.layer, operands)
    frozen = rows.pop(FROZEN)
    rated = sorted(rows.values(), key=lambda row: row.get("over", {}).get(FROZEN, {}).get("median", float("inf")))
    return {**_identity(problem), "frozen": frozen, "layers": rated}


def interleaved(turns: Mapping[str, Turn], operands: Operands, device: str, pace: Pace) -> dict[str, list[float]]:
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


@contextmanager
def _noting(row: dict[str, Any]) -> Iterator[None]:
    """A region whose error becomes the status of a row, so that the other layers are still measured."""
    try:
        yield
    except Violation as violation:
        row["status"] = f"{WRONG}: {str(violation).splitlines()[0].removeprefix('worst    ')}"
    except Exception as error:  # noqa: BLE001  (whatever the target raises)
        row["status"] = f"raises {type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"


def _identity(problem: Problem) -> dict[str, Any]:
    size = problem.size
    frozen, adapted = ([*map(vars, both)] for both in _passes(problem))
    return {
        "case": str(problem),
        "M": size.m,
        "K": size.k,
        "N": size.n,
        "r": size.r,
        "dtype": problem.dtype,
        "dropout": problem.dropout,
        "dropout_position": problem.position if problem.dropout else None,
        "memory_efficient": problem.memory_efficient,
        "least_work": {"frozen": frozen, "adapted": adapted},
    }


def _passes(problem: Problem) -> tuple[tuple[work.Work, ...], tuple[work.Work, ...]]:
    width = dtype_named(problem.dtype).itemsize
    return work.frozen(problem.size, width), work.adapted(problem.size, width)


def _costs(
    times: Mapping[str, list[float]],
    label: str,
    passes: Sequence[work.Work],
    ceilings: Ceilings,
    dtype: str,
) -> dict[str, Any]:
    """The time of a layer, its ratio to every other layer, and its FLOP/s and bytes/s relative to the ceilings."""
    seconds = statistics.median(times[label])
    flops, moved = (sum(getattr(w, name) for w in passes) / seconds for name in ("flops", "bytes"))
    return {
        "seconds": seconds,
        "rounds": times[label],
        "over": {other: spread(times[label], times[other]) for other in times if other != label},
        "flops_per_second": flops,
        "of_flops_ceiling": flops / ceilings.flops[dtype],
        "bytes_per_second": moved,
        "of_bytes_ceiling": moved / ceilings.bytes,
        "over_roofline": seconds / ceilings.least_seconds(passes, dtype),
    }


def spread(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """Median and quartiles of the ratios between times of the same round."""
    low, middle, high = statistics.quantiles([a / b for a, b in zip(ours, theirs, strict=True)], n=4)
    return {"median": middle, "quartiles": [low, high]}


def _counted(layer: nn.Module, operands: Operands) -> dict[str, int]:
    """The memory of a step, and the FLOP that torch's counter sees, which exclude Triton kernels."""
    x, g = operands.x, operands.g
    with FlopCounterMode(display=False) as counter:
        step(layer, x, g)
    return {
        "flops_counted": counter.get_total_flops(),
        "saved_bytes": saved_bytes(layer, x),
        "peak_bytes": peak_bytes(layer, x, g),
    }
