"""A guard that limits the time and memory of the processes that run trials, from another process.

A target may stall while it holds the interpreter's lock, cancel the timer of its watch, or allocate all memory of the
machine. Only another process can end it then.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

GRACE = 2.0  # seconds after the limit, in which the process may still end itself and write its stack
SILENCE = 300.0  # seconds after the limits without news, after which the run is ended
ANSWER = 3.0  # seconds that a process has to write its stack before it is killed
PAUSE = 0.1  # a stack is complete once its file has not grown for this many seconds
EXIT = 5.0  # seconds in which the processes may end after the last result; the target's threads are not waited for
LEAST = 2 * 2**30  # bytes of memory that every process is allowed
LATE = "did not finish within"  # the first words of the message of a trial that exceeded its time


class Stopped(Exception):  # noqa: N818
    """The target imported once, but not in the processes that run its trials. The message says why."""


class Followed(Protocol):
    """A process that a guard may end."""

    def kill(self) -> None:
        """End the process."""

    def wait(self) -> Any:
        """Wait for the end of the process."""


class Guard:
    """Reads the status files that the watches write to `folder`, and ends processes that exceed a limit.

    Args:
        limit: the most seconds for a trial; its watch may set fewer.   importing: seconds for an import of the target.
        memory: resident bytes that one process may use beyond those that it started with.
    """

    def __init__(self, folder: Path, limit: float, importing: float, memory: int) -> None:
        self.folder, self.limit, self.importing, self.memory = folder, limit, importing, memory
        self._news, self._at = "", time.monotonic()

    def look(self, process: Followed, finished: bool) -> None:
        """End processes that exceed a limit. End the whole session if it has been silent for too long.

        Args:
            finished: whether every trial has its result, so that the session should end soon.

        Raises:
            Stopped: if the target's import failed, ended its process, or stalled.
        """
        for path, doing in self._doing():
            what, age, alive = doing["what"], time.monotonic() - float(doing["since"]), _runs(doing)
            if what == "refused":
                raise Stopped(doing["text"])
            if what == "import" and not alive:
                raise Stopped("the process that imported it ended")
            if what == "import" and age > self.importing:
                raise Stopped(f"it did not import within {self.importing:g} s")
            if not alive:
                path.unlink(missing_ok=True)
            elif what == "trial" and age > (limit := float(doing["limit"])) + GRACE:
                self._end(path, doing, f"{LATE} {limit:g} s")
            elif (size := resident(int(doing["pid"])) - int(doing["began_with"])) > self.memory:
                gib = 2.0**30
                why = f"took {size / gib:.1f} GiB of memory: the limit is {self.memory / gib:.1f} GiB"
                self._end(path, doing, why)
        if self._silent_for() > (EXIT if finished else self.limit + self.importing + SILENCE):
            self.stop(process)

    def stop(self, process: Followed) -> None:
        """End the session and the processes that run its trials."""
        process.kill()
        process.wait()
        for _, doing in self._doing():
            if _runs(doing):
                _kill(int(doing["pid"]), signal.SIGKILL)

    def _doing(self) -> Iterator[tuple[Path, dict[str, str]]]:
        for path in sorted(self.folder.glob("*.doing")):
            try:
                yield path, json.loads(path.read_text(encoding="utf-8"))
            except ValueError:
                continue  # the file is being written

    def _silent_for(self) -> float:
        events = self.folder / "events.jsonl"
        news = f"{events.stat().st_size if events.exists() else 0} {sorted(self.folder.glob('*.doing'))}"
        if news != self._news:
            self._news, self._at = news, time.monotonic()
        return time.monotonic() - self._at

    def _end(self, path: Path, doing: dict[str, str], why: str) -> None:
        path.with_suffix(".ended").write_text(why, encoding="utf-8")
        _kill(int(doing["pid"]), signal.SIGUSR1)  # the watch then writes the stack
        _await_end_of(path.with_suffix(".trace"))
        if why.startswith(LATE) and _since(path) != doing["since"]:  # on a busy machine it may just have finished
            path.with_suffix(".ended").unlink(missing_ok=True)
            return
        _kill(int(doing["pid"]), signal.SIGKILL)
        path.unlink(missing_ok=True)


def _since(path: Path) -> str:
    """When the process began what it does now; empty if it has written nothing."""
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["since"])
    except (FileNotFoundError, ValueError):
        return ""


def _await_end_of(trace: Path) -> None:
    """Wait until a stack is written. On a busy machine this takes a while, and some processes never write one."""
    deadline, size = time.monotonic() + ANSWER, 0
    while time.monotonic() < deadline:
        time.sleep(PAUSE)
        before, size = size, trace.stat().st_size if trace.exists() else 0
        if 0 < size == before:
            return


def memory_for(processes: int) -> int:
    """Resident bytes for each of a number of processes: its share of 90 % of the available memory, at least 2 GiB."""
    return max(LEAST, int(0.9 * _available() / max(1, processes)))


def _available() -> int:
    """Bytes of memory that are free now, in the machine and within the limit of the control group."""
    found = re.search(r"MemAvailable:\s+(\d+) kB", _text("/proc/meminfo"))
    free = int(found.group(1)) * 1024 if found else 2**62
    for most, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        bounds = [_text(f"/sys/fs/cgroup/{name}").strip() for name in (most, used)]
        if all(bound.isdecimal() for bound in bounds):
            free = min(free, int(bounds[0]) - int(bounds[1]))
    return free


def resident(pid: int) -> int:
    """Resident bytes of a process; 0 if the number is unknown."""
    pages = _text(f"/proc/{pid}/statm").split()
    return int(pages[1]) * os.sysconf("SC_PAGE_SIZE") if len(pages) > 1 else 0


def _runs(doing: dict[str, str]) -> bool:
    """Whether the process is still running. Another process with the same id does not count."""
    return born(int(doing["pid"])) == doing["born"]


def born(pid: int) -> str:
    """The start time of a process, in ticks; empty if the process has ended or the time is unknown."""
    status = _text(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return status[19] if len(status) > 19 and status[0] != "Z" else ""


def _kill(pid: int, how: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, how)


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
