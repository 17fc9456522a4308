"""`loraspec run T --watch-clause ID` in a separate process."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from queue import Queue

from tests.support.commands import PATIENCE, TARGETS

EPOCH = 1_700_000_000 * 10**9


class Loop:
    """A running watch loop on a target in a folder, and its output."""

    def __init__(self, folder: Path, target: str, *options: str) -> None:
        self.folder, self.saves = folder, 0
        command = [sys.executable, "-m", "conformance", "run", target, "--watch-clause", *options]
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(TARGETS)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.lines: Queue[str] = Queue()
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as stream:
            for line in stream:
                self.lines.put(line)

    def save(self, text: str, name: str = "mine.py") -> list[str]:
        """Save a file as editors do, and wait for the verdict."""
        new = self.folder / f"{name}.new"
        new.write_text(text)
        self.saves += 1
        os.utime(new, ns=(0, EPOCH + self.saves))  # saves are nanoseconds apart
        new.replace(self.folder / name)
        return self.verdict()

    def verdict(self) -> list[str]:
        """Return the lines up to the next verdict."""
        found = [self.lines.get(timeout=PATIENCE)]
        while not re.match(r"\d\d:\d\d:\d\d ", found[-1]):
            found.append(self.lines.get(timeout=PATIENCE))
        return found

    def rest(self) -> list[str]:
        """Return the lines after the last verdict of a loop that has ended."""
        return [self.lines.get() for _ in range(self.lines.qsize())]

    def interrupt(self) -> int:
        """Send Ctrl-C and return the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(PATIENCE)

    def stop(self) -> None:
        """Terminate the loop if it still runs, and wait for its end."""
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(PATIENCE)
        self.reader.join(PATIENCE)
