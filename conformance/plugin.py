"""The suite's pytest plugin: it runs clauses as tests on a chosen target.

`loraspec.plugin` registers it in the sessions that collect the suite. It imports neither torch nor hypothesis.
"""

from __future__ import annotations

import argparse
import os
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from conformance.errors import UsageError
from conformance.isolation import package_shadowing
from conformance.run.selection import Selection, gpu_at_hand, set_interpreter

if TYPE_CHECKING:
    from collections.abc import Iterable

FOLDER = Path(__file__).resolve().parent / "clauses"
OPTIONS: dict[str, tuple[str | None, str]] = {
    "target": ("optimized", "implementation to test: package.module or package.module:attribute"),
    "group": (None, "only these groups of clauses (separated by commas, or repeated)"),
    "clause": (None, "only these clauses (separated by commas, or repeated); wildcards, as in 'LIN-FWD*'"),
    "exclude": (None, "all but these clauses and groups (separated by commas, or repeated); wildcards too"),
    "dtype": (None, "only these dtypes (separated by commas, or repeated)"),
    "profile": ("default", "number of cases: quick, default or nightly"),
    "device": ("cpu", "cpu, cuda or cuda:N"),
    "lane": (None, "only subjects that run in this lane: cpu, interpreter or gpu"),
    "seed": ("0", "seed from which the cases are drawn"),
    "deviations": (None, "file of expected failures, each with a reason, beside those that the target declares"),
    "shard": (None, "i/n: only the i-th of n parts of the trials; `loraspec merge` puts their reports together"),
    "report-dir": (None, "folder for report.json, report.html, junit.xml and reproducers"),
}
LISTS = ("group", "clause", "exclude", "dtype")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add each option under two names, such as `--target` and `--loraspec-target`: the short one may be taken."""
    group = parser.getgroup("loraspec", "conformance of a LoRA implementation")
    for name, (default, description) in OPTIONS.items():
        names = [f"--loraspec-{name}", f"--{name}"]
        kind = {"action": "append", "default": []} if name in LISTS else {"action": "store", "default": default}
        settings = {"dest": f"loraspec_{name.replace('-', '_')}", "help": description, **kind}
        try:
            group.addoption(*names, **settings)
        except (ValueError, argparse.ArgumentError):  # the short name is taken by another plugin
            group.addoption(names[0], **settings)


def pytest_configure(config: pytest.Config) -> None:
    """Start the suite's session."""
    from conformance.run.execution import check_names

    here = str(config.invocation_params.dir)
    sys.path[:0] = [here] if here not in sys.path else []  # the target may lie there, as for `loraspec run`
    try:
        selection = selected(config)
        package_shadowing.check([selection.target])
        check_names(selection)
    except UsageError as error:
        raise pytest.UsageError(str(error)) from error
    if not hasattr(config, "workerinput"):  # workers inherit what the controller sets
        set_interpreter(selection.lane, selection.device, gpu_at_hand())
        if getattr(config.option, "numprocesses", None):
            os.environ.setdefault("OMP_NUM_THREADS", "1")
    from conformance.run.pytest_session import Session

    config.pluginmanager.register(Session(config, selection), "loraspec-session")


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """Collect every file of clauses, whatever file names the session takes for tests."""
    if file_path.parent.parent != FOLDER:
        return None
    patterns = [*parent.config.getini("python_files"), "__init__.py"]
    collected = parent.session.isinitpath(file_path) or any(fnmatch(file_path.name, each) for each in patterns)
    if file_path.suffix != ".py" or collected:  # the session collects the file anyway, or the file has no clauses
        return None
    module: pytest.Module = pytest.Module.from_parent(parent, path=file_path)
    return module


def selected(config: pytest.Config) -> Selection:
    """The selection that the options ask for.

    Raises:
        UsageError: for an unknown name.
    """
    from conformance.target import deviations

    option = config.option
    try:
        seed = int(option.loraspec_seed)
    except ValueError:
        raise UsageError(f"--seed {option.loraspec_seed!r} is not an integer") from None
    path = option.loraspec_deviations
    expected = deviations.read(config.invocation_params.dir / path) if path else {}
    return Selection.of(
        option.loraspec_target,
        groups=as_list(option.loraspec_group),
        clauses=as_list(option.loraspec_clause),
        dtypes=as_list(option.loraspec_dtype),
        excluded=as_list(option.loraspec_exclude),
        deviations=tuple(expected.items()),
        device=option.loraspec_device,
        lane=option.loraspec_lane,
        profile=option.loraspec_profile,
        seed=seed,
        shard=option.loraspec_shard,
    )


def as_list(values: Iterable[str] | None) -> tuple[str, ...]:
    """The values of a repeatable option as a tuple."""
    return tuple(values or ())
