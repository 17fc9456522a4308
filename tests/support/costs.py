"""What each test takes, in the folder that $COSTS names: a line of JSON for each, in a file of its process."""

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
    """A plugin that notes the seconds of each test: those of the clock, and of its process and its children's."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / f"tests-{os.getpid()}.jsonl"

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Note what the test and the fixtures made for it took."""
        processor, clock = spent(), time.perf_counter()
        result = yield
        line = {"test": item.nodeid, "cpu": spent() - processor, "wall": time.perf_counter() - clock}
        with self.file.open("a", encoding="utf-8") as file:
            file.write(f"{json.dumps(line)}\n")
        return result


def spent() -> float:
    """The processor's seconds of this process, its ended children, and the commands that ran in copies of another."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    preloaded: Any = sys.modules.get("tests.support.preloaded_process")  # imported by the tests that use it
    commands = preloaded.SPENT[0] if preloaded else 0.0
    return float(time.process_time() + children.ru_utime + children.ru_stime + commands)


def begin(config: pytest.Config) -> None:
    """Note the costs of this process's tests where $COSTS says where; sessions that a test starts note none."""
    folder = os.environ.get(VARIABLE)
    if not folder or _deals_to_others(config):
        return
    del os.environ[VARIABLE]
    Path(folder).mkdir(parents=True, exist_ok=True)
    config.pluginmanager.register(Costs(Path(folder)), "costs")


def _deals_to_others(config: pytest.Config) -> bool:
    """Whether this process runs no tests, but has workers, which find the folder by the same variable."""
    return not hasattr(config, "workerinput") and bool(getattr(config.option, "tx", None))
