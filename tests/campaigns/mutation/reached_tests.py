"""The project's own tests that run each line of a package: only they can notice a defect there."""

from __future__ import annotations

import hashlib
import multiprocessing.process
import os
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.campaigns.mutation import mutants, own_tests
from tests.campaigns.mutation.mutants import Mutant
from tests.campaigns.mutation.reach import contexts_by_line, digest_of_sources, measured_once, tracer_of_packages

# A test that raises one of these events runs code in a process whose lines are not seen here.
ELSEWHERE = ("subprocess.Popen", "os.fork", "os.posix_spawn", "socket.connect")


class ReachedTests:
    """The tests that run each line, measured once for each file of tests and kept beside the journal.

    A line that a fixture runs, or the import of the tests, is every test's of that file, since results are shared.
    Tests that do not pass while they are traced, because they ask what Python itself sees, are always asked.

    Args:
        folder: where the measurements are kept; names contain a digest of the sources and the tests.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._measured: dict[str, dict[str, Any]] = {}
        self._digest = digest_of_sources()

    def of(self, mutant: Mutant) -> tuple[str, ...]:
        """The tests that can notice an edit, the files that take the least time first."""
        chosen: list[tuple[float, list[str]]] = []
        for path in own_tests.tests_of(mutant.file):
            measured = self._of_file(path)
            lines, seconds = measured["lines"].get(mutant.file, {}), measured["seconds"]
            near = lines.values() if mutant.imported else [lines.get(str(n), []) for n in range(*mutant.lines)]
            ran = {test for tests in near for test in tests} | set(measured["elsewhere"])
            reached = [test for test in seconds if test in ran or path in ran]
            if reached:
                chosen.append((sum(seconds[test] for test in reached), reached))
        return tuple(test for _, tests in sorted(chosen) for test in tests)

    def _of_file(self, path: str) -> dict[str, Any]:
        if path not in self._measured:
            kept = self._folder / f"{Path(path).stem}-{self._digest}-{_digest_of(path)}.json"
            self._measured[path] = measured_once(kept, lambda: _measured(path))
        return self._measured[path]


def _digest_of(path: str) -> str:
    """A digest of a file of tests and of the code that tests share."""
    digest = hashlib.sha256((mutants.ROOT / path).read_bytes())
    for shared in sorted((mutants.ROOT / "tests" / "support").rglob("*.py")):
        digest.update(shared.read_bytes())
    return digest.hexdigest()[:8]


def _measured(path: str) -> dict[str, Any]:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    tracer = tracer_of_packages()
    for name in [name for name in sys.modules if name.partition(".")[0] in own_tests.PROJECT]:
        if not name.startswith("tests.campaigns.mutation"):
            del sys.modules[name]
    os.chdir(mutants.ROOT)
    tracer.start()
    contexts = _Contexts(path, tracer.switch_context)
    with contexts.listening():
        ended = pytest.main([*own_tests.ASKED, f"--rootdir={mutants.ROOT}", path], plugins=[contexts])
    tracer.stop()
    if ended != pytest.ExitCode.OK:
        return {"lines": {}, "seconds": {path: sum(contexts.seconds.values())}, "elsewhere": [path]}
    lines = contexts_by_line(tracer)
    return {"lines": lines, "seconds": contexts.seconds, "elsewhere": sorted(contexts.elsewhere)}


class _Contexts:
    """A pytest plugin that says which test runs: its name while it is called, its file's around it."""

    def __init__(self, path: str, switch: Callable[[str], None]) -> None:
        self.seconds: dict[str, float] = {}
        self.elsewhere: set[str] = set()
        self._path, self._switch, self._listens = path, switch, False
        self._enter(path)

    def _enter(self, name: str) -> None:
        self._name = name
        self._switch(name)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Note the tests that use another process, while the context is open."""
        start = multiprocessing.process.BaseProcess.start

        def noted(process: Any) -> None:
            self.elsewhere.add(self._name)
            start(process)

        def heard(event: str, _: Any) -> None:
            if self._listens and event in ELSEWHERE:
                self.elsewhere.add(self._name)

        sys.addaudithook(heard)  # it cannot be taken away
        multiprocessing.process.BaseProcess.start = noted  # type: ignore[method-assign]
        self._listens = True
        try:
            yield
        finally:
            self._listens = False
            multiprocessing.process.BaseProcess.start = start  # type: ignore[method-assign]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: Any) -> Generator[None, Any, Any]:
        self._enter(item.nodeid)
        try:
            return (yield)
        finally:
            self._enter(self._path)

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration
