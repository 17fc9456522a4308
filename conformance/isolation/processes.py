"""Processes forked from this one: they end with it, in whatever way it ends, and what they print is read, not shown."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from typing import IO

DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)
KEPT = 2**16  # bytes of output kept: its end, where the reason for an end stands


def fork(work: Callable[[], object]) -> int:
    """Run `work` in a copy of this process that ends with it; the copy's number.

    The copy ends once `work` returns, with exit code 0, or 1 where it raised: threads and exit handlers, a target's
    among them, are not waited for.
    """
    parent = os.getpid()
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads: the copy needs none of them
        number = os.fork()
    if number:
        return number
    code = 1
    try:
        die_with(parent)
        work()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:  # noqa: BLE001  (a copy must never go on with what its parent was doing)
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def die_with(parent: int) -> None:
    """Have the system end this process when its parent ends."""
    ctypes.CDLL(None).prctl(DIES_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before that was asked for
        os._exit(1)


def exit_code(status: int) -> int:
    """The exit code of a status from `waitpid`; negative for the signal that ended the process."""
    return os.waitstatus_to_exitcode(status)


class Tail:
    """Reads all that a process prints and keeps the end of it, so that megabytes cost neither memory nor disk."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._kept = b""
        self._reader = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self._reader.start()

    def _read(self, stream: IO[bytes]) -> None:
        with stream:
            while part := os.read(stream.fileno(), KEPT):
                self._kept = (self._kept + part)[-KEPT:]

    def lines(self, most: int) -> str:
        """The last lines, indented, each after a line break; none that is very long."""
        self._reader.join(1.0)  # not longer: what the target left running may hold the pipe open
        text = self._kept.decode("utf-8", errors="replace").strip()
        return "".join(f"\n  {line[:300]}" for line in text.splitlines()[-most:])


class Child:
    """A copy of this process with a session of its own, without input, whose output is read.

    Attributes:
        printed: the end of what it and its own children print.
    """

    def __init__(self, work: Callable[[], object]) -> None:
        output, writes = os.pipe()

        def isolated() -> None:
            os.setsid()  # an interrupt typed at a terminal is the command's to handle; the group is ended as one
            os.close(output)
            _redirect(writes)
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            work()

        self.pid = fork(isolated)
        os.close(writes)
        self.printed = Tail(os.fdopen(output, "rb", buffering=0))
        self._code: int | None = None

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        if self._code is None:
            number, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = exit_code(status) if number else None
        return self._code

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for its end, or so many seconds; its exit code, or None."""
        if self._code is None and timeout is None:
            self._code = exit_code(os.waitpid(self.pid, 0)[1])
        deadline = time.monotonic() + (timeout or 0.0)
        while self.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        return self._code

    def kill(self) -> None:
        """End it with all that it started and that did not leave its group."""
        for end, number in ((os.killpg, self.pid), (os.kill, self.pid)):  # it may have no group of its own yet
            with contextlib.suppress(ProcessLookupError, PermissionError):
                end(number, signal.SIGKILL)


def _redirect(writes: int) -> None:
    """Read nothing, and write to the pipe what goes to standard output and error, as text or by descriptor."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, goal in ((nothing, 0), (writes, 1), (writes, 2)):
        os.dup2(source, goal)
    os.close(nothing)
    os.close(writes)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115  (they live as long as the process)
    sys.stdout = open(1, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
