"""A watch over trials: what a worker does is on disk, so that its death can be traced to a case."""

from __future__ import annotations

import faulthandler
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from conformance.guard import born
from conformance.result import CRASHED, Result

PATIENCE = 20  # deaths after which trials like those that died are not tried any more


class Watch:
    """Keeps `<worker>.case` (what is being checked), `.trace` (the stack it died with) and `.doing` (for the guard)."""

    def __init__(self, folder: Path, worker: str, timeout: float) -> None:
        self.folder, self.worker, self.timeout = folder, worker, timeout
        self.case_file: IO[str] = (folder / f"{worker}.case").open("w", encoding="utf-8")
        self.trace_file: IO[str] = (folder / f"{worker}.trace").open("w", encoding="utf-8")

    @contextmanager
    def over(self) -> Iterator[None]:
        """Watch one trial: past the time limit the process ends, whatever it is stuck in."""
        for file in (self.case_file, self.trace_file):
            _rewrite(file, "")
        faulthandler.enable(self.trace_file)
        faulthandler.register(signal.SIGUSR1, self.trace_file)
        faulthandler.dump_traceback_later(self.timeout, exit=True, file=self.trace_file)
        self.doing("trial")
        try:
            yield
        finally:
            self.doing("nothing")
            faulthandler.cancel_dump_traceback_later()

    @contextmanager
    def importing(self) -> Iterator[None]:
        """Follow an import of the target: where it ends the process, the guard knows what did."""
        self.doing("import")
        yield
        self.doing("nothing")

    def doing(self, what: str, text: str = "") -> None:
        """Tell the guard: `import`, `trial`, `nothing`, or `refused` with the reason."""
        pid = os.getpid()
        said = {"pid": str(pid), "born": born(pid), "what": what, "since": str(time.monotonic()), "text": text}
        # renamed into place, so that it is never read half written
        temporary = self.folder / f"{self.worker}.said"
        temporary.write_text(json.dumps(said), encoding="utf-8")
        temporary.replace(self.folder / f"{self.worker}.doing")

    def hopeless(self, clause: str, subject: str, dtype: str) -> str | None:
        """Why a trial is not worth the time: many have ended their process, and ones like it among them."""
        deaths = [tuple(line.split()) for line in _read(self.folder / "deaths").splitlines()]
        if len(deaths) < PATIENCE:
            return None
        if any(death[:2] == (clause, subject) for death in deaths):
            return f"not tried: {len(deaths)} trials ended their process, this clause's among them"
        if sum(death[1:] == (subject, dtype) for death in deaths) >= 3:
            return f"not tried: {len(deaths)} trials ended their process, several of {dtype} among them"
        return None

    def close(self) -> None:
        """Let go of the files."""
        faulthandler.disable()
        for file in (self.case_file, self.trace_file):
            file.close()

    def note(self, case: object) -> None:
        """Write down the case that is checked next."""
        _rewrite(self.case_file, str(case))


def _rewrite(file: IO[str], text: str) -> None:
    file.seek(0)
    file.truncate()
    file.write(text)
    file.flush()


def crashed(folder: Path, worker: str, key: tuple[str, str, str], timeout: float) -> Result:
    """The result of a trial whose worker died, from what the worker and the guard left behind."""
    clause, subject, dtype = key
    with (folder / "deaths").open("a", encoding="utf-8") as file:
        file.write(f"{clause} {subject} {dtype}\n")
    case, trace, ended = (_read(folder / f"{worker}.{kind}") for kind in ("case", "trace", "ended"))
    (folder / f"{worker}.ended").unlink(missing_ok=True)  # without workers the next process has the same name
    if ended:
        message = ended
    elif trace.startswith("Timeout"):
        message = f"did not finish within {timeout:g} s"
    elif fatal := re.search(r"Fatal Python error: (.+)|Windows fatal exception: (.+)", trace):
        message = f"killed the process: {fatal.group(1) or fatal.group(2)}"
    else:
        message = "ended the process without an error: an exit call, a kill signal, or memory ran out"
    if place := _place(trace):
        message += f"\nat       {place}"
    return Result(clause, subject, dtype, status=CRASHED, case=case or None, found=case or None, message=message)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace").strip() if path.exists() else ""


def _place(trace: str) -> str:
    """The innermost frames outside the suite, of the thread that ran the suite."""
    threads = re.split(r"(?m)^(?:Current thread|Thread) .*$", trace)[1:]
    own = os.path.dirname(__file__)
    running = next((thread for thread in threads if own in thread), threads[0] if threads else "")
    frames = re.findall(r'File "(.+)", line (\d+) in (\S+)', running)
    outside: list[str] = []
    for file, line, function in frames:
        if file.startswith(own) and outside:
            break
        outside.append(f"{file}:{line} in {function}")
    return "\n         from ".join(outside[:3])


class Events:
    """The running record of a run, one JSON object a line, readable while it is written."""

    def __init__(self, folder: Path) -> None:
        self.path, self._read = folder / "events.jsonl", 0

    def write(self, **event: object) -> None:
        """Append one event."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")

    def new(self) -> list[dict[str, Any]]:
        """The complete events that were not read yet: a run is looked at five times a second, and may be long."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self._read)
            written, newline, _ = file.read().rpartition(b"\n")
        self._read += len(written) + len(newline)
        return [json.loads(line) for line in written.splitlines()]
