"""The loop of `loraspec run T --watch-clause ID`: judge one clause again after each save of the target's source.

The watching process imports torch and the suite, but never the target. Each judgement runs in a fork, which imports
the target anew, so that no side effect of the target survives a judgement.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import multiprocessing.context
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from conformance.errors import UsageError, known
from conformance.judgement.result import PASS
from conformance.report import terminal
from conformance.report.assemble import assemble
from conformance.report.plan import Plan
from conformance.report.verdict import FAILING, exit_code
from conformance.run import reload_worker
from conformance.run.execution import IMPORT_TIMEOUT, ONE_THREAD, TIMEOUTS, Following, record_death
from conformance.run.reload_worker import Stamps, stamps
from conformance.run.selection import Selection, gpu_at_hand, set_interpreter
from conformance.run.supervisor import Guard, Stopped, memory_for
from conformance.specification import spec_page

# Polling with stat detects every save on every file system, including network and container mounts, and takes less
# than 0.1 % of a processor. File notifications of the operating system would bring no advantage.
EVERY = 0.1  # seconds between two polls of the files


class Fork(multiprocessing.context.ForkProcess):
    """A copy of this process that runs one function."""

    def wait(self) -> None:
        """Wait for the end of the process, like `subprocess.Popen.wait`."""
        self.join()


@dataclass(frozen=True)
class Verdict:
    """The verdict of one judgement: its exit code, the lines to print, and the stamps of the source files."""

    code: int
    lines: list[str]
    files: Stamps = field(default_factory=dict)


def follow(selection: Selection, timeout: float | None = None, memory: float | None = None) -> int:
    """Judge the selected clause after each change until interrupted. Returns the exit code of the last verdict.

    Args:
        timeout: seconds for one trial.   memory: GiB for the process of a judgement.

    Raises:
        UsageError: if the clause is unknown or the target's module does not exist.
        KeyboardInterrupt: if interrupted before the first verdict.
    """
    entries = spec_page.read()
    spec_page.check_written(selection.clauses, entries)
    known(selection.clauses, entries, "clause")
    files = places_of(selection.target.partition(":")[0])
    os.environ.update(ONE_THREAD)  # before torch is imported: a process with threads cannot be copied
    set_interpreter(selection.lane, selection.device, gpu_at_hand())
    out = terminal.console()
    last: Verdict | None = None
    with _interruptible():
        try:
            reload_worker.prepare()
            limit = TIMEOUTS[selection.profile] if timeout is None else timeout
            most = memory_for(1) if memory is None else int(memory * 2**30)
            out.print(f"judging {', '.join(selection.clauses)} at each save of {selection.target}; Ctrl-C ends")
            seen = stamps(files)
            while True:
                started, now = time.monotonic(), seen
                verdict = _judged(selection, limit, most, lambda now=now: stamps(now) != now)  # type: ignore[misc]
                if verdict is not None:
                    last = verdict
                    _show(verdict, time.monotonic() - started)
                    seen = verdict.files | seen
                seen = _changed(seen)
        except KeyboardInterrupt:
            if last is None:
                raise KeyboardInterrupt("there is no verdict yet") from None
            out.print(f"\nended; the last verdict: {last.lines[-1]}")
            return last.code


def places_of(module: str) -> set[Path]:
    """The paths at which the source of a module and of its packages may be. No module is imported.

    Raises:
        UsageError: if the top-level module or package does not exist.
    """
    names = module.split(".")
    found = importlib.util.find_spec(names[0])
    if found is None:
        raise UsageError(f"target {module!r} does not import: no module named {names[0]!r}")
    inside = list(found.submodule_search_locations or [])
    folder = Path(inside[0] if inside else found.origin or names[0]).resolve().parent
    packages = {folder.joinpath(*names[: depth + 1], "__init__.py") for depth in range(len(names))}
    return packages | {folder.joinpath(*names[:-1], f"{names[-1]}.py")}


def _changed(seen: Stamps) -> Stamps:
    """Wait until a file changes, and then until no file changes any more. Returns the new stamps."""
    while (now := stamps(seen)) == seen:
        time.sleep(EVERY)
    while True:  # an editor may save a file in two steps, by removing it and writing it again
        time.sleep(EVERY)
        before, now = now, stamps(seen)
        if now == before:
            return now


def _judged(selection: Selection, limit: float, memory: int, outdated: Callable[[], bool]) -> Verdict | None:
    """Judge once, in a fork. Returns None if the source changes in the meantime."""
    with tempfile.TemporaryDirectory(prefix="loraspec-") as scratch:
        folder = Path(scratch)
        guard = Guard(folder, limit, IMPORT_TIMEOUT, memory)
        process = Fork(target=reload_worker.judge, args=(selection, folder, limit))
        process.start()
        refused: str | None = None
        try:
            while process.is_alive():
                process.join(EVERY / 2)
                guard.look(process, finished=False)
                if outdated():
                    return None
            guard.look(process, finished=False)
        except Stopped as error:
            refused = str(error)
        finally:
            _end(process)
        files = reload_worker.files_in(folder)
        plan = _plan(folder / "plan.json")
        if refused is not None or plan is None:
            said = refused or "the process that imported it ended"
            return Verdict(2, [said, f"NO VERDICT {selection.target} cannot be judged"], files)
        record_death(folder, limit)
        return Verdict(*_reported(selection, plan, folder), files)


def _end(process: Fork) -> None:
    """End a fork and the processes that it started."""
    assert process.pid is not None
    with contextlib.suppress(ProcessLookupError):  # the fork has ended, or has no process group of its own yet
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()


def _plan(path: Path) -> Plan | None:
    return Plan.from_json(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def _reported(selection: Selection, plan: Plan, folder: Path) -> tuple[int, list[str]]:
    report = assemble(plan, Following(folder).look(), selection.settings)
    (clause,) = report.clauses
    lines = [f"the suite itself failed, which says nothing about the target:\n{e.traceback}" for e in report.errors]
    if clause.status in FAILING and not lines:
        lines = terminal.failure(clause, report, folder)
    word = "ERROR" if report.errors else clause.status.upper()
    seen: dict[str, list[str]] = {}
    for result in clause.results:
        mark = terminal.ratio(result.worst_ratio) if result.worst_ratio is not None else ""
        status = "" if result.status == PASS else result.status
        seen.setdefault(result.subject, []).append(" ".join(filter(None, (result.dtype, status, mark))))
    judged = "; ".join(f"{subject} {', '.join(results)}" for subject, results in seen.items())
    return exit_code(report), [*lines, f"{word} {clause.id}  {judged}; {clause.examples} cases"]


def _show(verdict: Verdict, seconds: float) -> None:
    out = terminal.console()
    for line in verdict.lines[:-1]:
        out.print(line)
    style = "bold green" if verdict.code == 0 else "bold red"
    out.print(f"{time.strftime('%H:%M:%S')} {verdict.lines[-1]}; {seconds:.1f} s", style=style)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Raise KeyboardInterrupt on Ctrl-C, even in a shell's background job, and exit on SIGTERM so the fork is ended."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
