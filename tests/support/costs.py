"""The time of each test: each process writes a line of JSON per test to its own file in the folder $COSTS."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

VARIABLE = "COSTS"


class Costs:
    """A plugin that records the wall-clock seconds of each test and the CPU seconds of its process and children."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / f"tests-{os.getpid()}.jsonl"

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Record the time of the test and of the fixtures created for it."""
        processor, clock = spent(), time.perf_counter()
        result = yield
        line = {"test": item.nodeid, "cpu": spent() - processor, "wall": time.perf_counter() - clock}
        with self.file.open("a", encoding="utf-8") as file:
            file.write(f"{json.dumps(line)}\n")
        return result


def spent() -> float:
    """Return the CPU seconds of this process, its ended children, and commands that ran in the preloaded process."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    preloaded: Any = sys.modules.get("tests.support.preloaded_process")  # only some tests import it
    commands = preloaded.SPENT[0] if preloaded else 0.0
    return float(time.process_time() + children.ru_utime + children.ru_stime + commands)


def begin(config: pytest.Config) -> None:
    """Record the costs of this process's tests if $COSTS is set; pytest sessions started by a test record none."""
    folder = os.environ.get(VARIABLE)
    if not folder or _deals_to_others(config):
        return
    del os.environ[VARIABLE]
    Path(folder).mkdir(parents=True, exist_ok=True)
    config.pluginmanager.register(Costs(Path(folder)), "costs")


def _deals_to_others(config: pytest.Config) -> bool:
    """Whether this process runs no tests itself but distributes them to workers, which read the same variable."""
    return not hasattr(config, "workerinput") and bool(getattr(config.option, "tx", None))
