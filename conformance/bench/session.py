"""A whole benchmark: conformance of the targets first, then the ceilings, then every problem."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import product

import torch

from conformance.bench import ceilings, layers
from conformance.bench.admission import BATCHES, EXPERTS, GROUPS, PACKED, Admission, examined, timed_clauses
from conformance.bench.cases import Size
from conformance.bench.layers import Contender, Problem
from conformance.bench.measurement import Pace, measure
from conformance.bench.mixtures import MODULE, with_common_subject
from conformance.bench.report import BenchReport
from conformance.errors import UsageError
from conformance.run.plan import device_name, versions
from conformance.run.selection import gpu_at_hand, set_interpreter


@dataclass(frozen=True)
class Wanted:
    """The options of a benchmark.

    Attributes:
        dropout: dropout probability of each adapter, at a position that all targets support.
        adapters: the number of adapters of batches whose rows use different ones; 0 times layers.
        base: the format of packed bases; empty for floating point bases.
        unranked: whether targets that are not ranked are timed as well.
    """

    targets: tuple[str, ...]
    sizes: tuple[Size, ...]
    dtypes: tuple[str, ...]
    device: str = "cpu"
    dropout: float = 0.0
    memory_efficient: bool = False
    adapters: int = 0
    base: str = ""
    unranked: bool = False
    pace: Pace = field(default_factory=Pace)

    @property
    def times_experts(self) -> bool:
        """Whether grouped layers are timed, over frozen experts."""
        return any(size.experts for size in self.sizes)


def run(wanted: Wanted, say: Callable[[str], None]) -> BenchReport:
    """Measure all cases, and report progress through `say`.

    Raises:
        UsageError: if a target does not import or has nothing to time, or the device does not exist.
        SuiteError: if the suite itself failed.
    """
    load = os.getloadavg()[0]
    admitted = []
    for spec in wanted.targets:
        say(f"checking {spec}: {', '.join(wanted.dtypes)}")
        timed = timed_clauses(dropout=wanted.dropout > 0, memory_efficient=wanted.memory_efficient)
        groups = BATCHES if wanted.adapters else EXPERTS if wanted.times_experts else GROUPS
        groups = PACKED if wanted.base else groups
        admitted.append(examined(spec, wanted.dtypes, wanted.device, timed, groups=groups))
    set_interpreter("cpu" if wanted.device == "cpu" else "gpu", wanted.device, gpu_at_hand())
    contenders = _contenders(admitted, wanted)
    position = _position(contenders) if wanted.dropout else "post"
    if wanted.device != "cpu":
        torch.cuda.set_device(torch.device(wanted.device).index or 0)  # the GPU of the clock and the counters
    say(f"measuring the ceilings of {wanted.device}")
    limits = ceilings.measured(wanted.dtypes, wanted.device)
    cases = []
    for size, dtype in product(wanted.sizes, wanted.dtypes) if contenders else ():
        problem = Problem(
            size,
            dtype,
            wanted.device,
            wanted.dropout,
            position,
            wanted.memory_efficient,
            wanted.adapters,
            wanted.base,
            contenders[0].subject == MODULE,
        )
        say(f"measuring {problem}")
        cases.append(measure(problem, contenders, limits, wanted.pace))
    return BenchReport(
        device=wanted.device,
        device_name=device_name(wanted.device),
        threads=torch.get_num_threads(),
        processors=os.cpu_count(),
        load_at_start=load,
        system=platform.platform(),
        versions=versions(),
        pace=wanted.pace,
        ceilings=limits,
        targets=tuple(admitted),
        cases=tuple(cases),
    )


def _contenders(admitted: list[Admission], wanted: Wanted) -> list[Contender]:
    """The timed layers of the targets. If importing a target changes torch's number of threads, the number is reset."""
    threads = torch.get_num_threads()
    found = []
    for admission in admitted:
        if admission.ranked or wanted.unranked:
            how = {"experts": wanted.times_experts, "packed": bool(wanted.base)}
            timed = layers.contenders(admission.spec, wanted.device, wanted.adapters, **how)
            found += [replace(contender, ranked=admission.ranked) for contender in timed]
    torch.set_num_threads(threads)
    return with_common_subject(found) if wanted.times_experts else found


def _position(contenders: list[Contender]) -> str:
    """The dropout position: one that every target supports."""
    common = [p for p in ("post", "pre") if all(p in c.target.dropout_positions for c in contenders)]
    if not common:
        each = ", ".join(f"{c.target.spec}: {'/'.join(c.target.dropout_positions)}" for c in contenders)
        raise UsageError(f"no dropout position is common to all targets ({each}): measure them apart")
    return common[0]
