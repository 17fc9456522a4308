"""A guard over the processes that run trials: their time, their memory and their output, seen from outside.

A target may stall while it holds the interpreter's lock, switch the watch's own timer off, or allocate until the
machine has nothing left: only another process can end it then.
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

GRACE = 2.0  # seconds beyond the limit, in which the process may still end itself and say where it was
SILENCE = 300.0  # seconds beyond the limit without any news, after which nothing will come any more
ANSWER = 3.0  # seconds in which a process that is ended may say where it was
PAUSE = 0.1  # seconds without more of a stack, after which it is whole
EXIT = 5.0  # seconds to end in once every result is there: threads of the target's are not waited for
LEAST = 2 * 2**30  # bytes of memory that every process is allowed
LATE = "did not finish within"  # begins the message of a trial that went beyond its time


class Stopped(Exception):  # noqa: N818
    """The target does not import where its trials run, though it did before; the message says how."""


class Followed(Protocol):
    """The process that a guard may end."""

    def kill(self) -> None:
        """End it."""

    def wait(self) -> Any:
        """Wait for its end."""


class Guard:
    """Follows what the watches in `folder` say their processes do, and ends those that go too far.

    Args:
        limit: the most seconds for a trial; the watch may say fewer.   importing: seconds for an import of the target.
        memory: resident bytes that one process may have beyond those that it began with.
    """

    def __init__(self, folder: Path, limit: float, importing: float, memory: int) -> None:
        self.folder, self.limit, self.importing, self.memory = folder, limit, importing, memory
        self._news, self._at = "", time.monotonic()

    def look(self, process: Followed, finished: bool) -> None:
        """End what goes too far; the whole session too where it gives no more news, or has none left to give.

        Raises:
            Stopped: where the target's import ended or stalled a process.
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
                continue  # just being written

    def _silent_for(self) -> float:
        events = self.folder / "events.jsonl"
        news = f"{events.stat().st_size if events.exists() else 0} {sorted(self.folder.glob('*.doing'))}"
        if news != self._news:
            self._news, self._at = news, time.monotonic()
        return time.monotonic() - self._at

    def _end(self, path: Path, doing: dict[str, str], why: str) -> None:
        path.with_suffix(".ended").write_text(why, encoding="utf-8")
        _kill(int(doing["pid"]), signal.SIGUSR1)  # the watch answers it by the stack
        _await_end_of(path.with_suffix(".trace"))
        _kill(int(doing["pid"]), signal.SIGKILL)
        path.unlink(missing_ok=True)


def _await_end_of(trace: Path) -> None:
    """Wait until a stack is written: on a busy machine its process may not run at once, and some never do."""
    deadline, size = time.monotonic() + ANSWER, 0
    while time.monotonic() < deadline:
        time.sleep(PAUSE)
        before, size = size, trace.stat().st_size if trace.exists() else 0
        if 0 < size == before:
            return


def memory_for(processes: int) -> int:
    """Resident bytes for each of so many processes: nine tenths of what is available, and at least 2 GiB."""
    return max(LEAST, int(0.9 * _available() / max(1, processes)))


def _available() -> int:
    """Bytes of memory that are free now, in the machine and in the control group that may bound it."""
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
    """Bytes of memory a process occupies; 0 where that cannot be known."""
    pages = _text(f"/proc/{pid}/statm").split()
    return int(pages[1]) * os.sysconf("SC_PAGE_SIZE") if len(pages) > 1 else 0


def _runs(doing: dict[str, str]) -> bool:
    """Whether the process is still there, and its number was not given to another one."""
    return born(int(doing["pid"])) == doing["born"]


def born(pid: int) -> str:
    """When a process was started, in ticks; empty for one that has ended, or where that cannot be known."""
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
