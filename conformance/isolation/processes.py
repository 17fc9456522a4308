"""Forked child processes: they always end when this process ends, and their output is captured."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from typing import IO, Any

DIES_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)
KEPT = 2**16  # bytes kept from the end of the output, where the cause of a crash is printed


def fork(work: Callable[[], object]) -> int:
    """Fork a child that runs `work` and ends at the latest with this process; return its process id.

    The child exits as soon as `work` returns, with code 0, or 1 if `work` raised. It does not wait for threads or
    exit handlers, because a target may have left some.
    """
    parent = os.getpid()
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # about forking with threads, which the child does not need
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
    except BaseException:  # noqa: BLE001  (a child must never continue the parent's work)
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def answered(work: Callable[[], Any], seconds: float) -> Any:
    """What a function returns in a copy of this process, as JSON has it; None if the copy ends or hangs.

    Args:
        seconds: the time that it may take.
    """
    reads, writes = os.pipe()
    number = fork(lambda: os.write(writes, json.dumps(work()).encode()))
    os.close(writes)
    with os.fdopen(reads, "rb") as pipe:
        written = pipe.read() if select.select([pipe], [], [], seconds)[0] else b""
    os.kill(number, signal.SIGKILL)
    os.waitpid(number, 0)
    return json.loads(written) if written else None


def die_with(parent: int) -> None:
    """Ask the system to end this process when its parent ends."""
    ctypes.CDLL(None).prctl(DIES_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:  # the parent ended before the call above
        os._exit(1)


def exit_code(status: int) -> int:
    """The exit code for a status of `waitpid`; minus the signal number if a signal ended the process."""
    return os.waitstatus_to_exitcode(status)


class Tail:
    """Reads the whole output of a process and keeps only its end, so that long output takes little memory."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._kept = b""
        self._reader = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self._reader.start()

    def _read(self, stream: IO[bytes]) -> None:
        with stream:
            while part := os.read(stream.fileno(), KEPT):
                self._kept = (self._kept + part)[-KEPT:]

    def lines(self, most: int) -> str:
        """The last lines, each after a line break, indented and cut off if very long."""
        self._reader.join(1.0)  # no longer, because a process that the target left running may hold the pipe open
        text = self._kept.decode("utf-8", errors="replace").strip()
        return "".join(f"\n  {line[:300]}" for line in text.splitlines()[-most:])


class Child:
    """A forked child in a session of its own, without input, whose output is captured.

    Attributes:
        printed: the end of the output of the child and of its own children.
    """

    def __init__(self, work: Callable[[], object]) -> None:
        output, writes = os.pipe()

        def isolated() -> None:
            os.setsid()  # only the parent handles Ctrl-C; the whole group can be killed at once
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
        """The exit code, minus the signal number if a signal ended the child; None while it runs."""
        if self._code is None:
            number, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = exit_code(status) if number else None
        return self._code

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait until the child ends, for at most `timeout` seconds; return its exit code, or None if it still runs."""
        if self._code is None and timeout is None:
            self._code = exit_code(os.waitpid(self.pid, 0)[1])
        deadline = time.monotonic() + (timeout or 0.0)
        while self.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        return self._code

    def kill(self) -> None:
        """Kill the child and every process in its group."""
        for end, number in ((os.killpg, self.pid), (os.kill, self.pid)):  # the child may have no group of its own yet
            with contextlib.suppress(ProcessLookupError, PermissionError):
                end(number, signal.SIGKILL)


def _redirect(writes: int) -> None:
    """Make standard input empty, and redirect standard output and error to the pipe: descriptors and streams."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, goal in ((nothing, 0), (writes, 1), (writes, 2)):
        os.dup2(source, goal)
    os.close(nothing)
    os.close(writes)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115  (the streams live as long as the process)
    sys.stdout = open(1, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
