"""A watch over trials: workers record their state on disk, so that a crash can be traced to a case."""

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

from conformance.judgement.result import CRASHED, Result
from conformance.report.trial_keys import Key
from conformance.run.supervisor import LATE, born, resident


class Watch:
    """Writes `<worker>.case` (the current case), `.trace` (the stack at a crash) and `.doing` (the guard's input).

    Attributes:
        timeout: seconds that the next trial may take.
    """

    def __init__(self, folder: Path, worker: str, timeout: float) -> None:
        self.folder, self.worker, self.timeout = folder, worker, timeout
        self.began_with = resident(os.getpid())  # bytes used by the suite, which do not count against the target
        self.case_file: IO[str] = (folder / f"{worker}.case").open("w", encoding="utf-8")
        self.trace_file: IO[str] = (folder / f"{worker}.trace").open("w", encoding="utf-8")

    @contextmanager
    def over(self) -> Iterator[None]:
        """Watch one trial. Beyond its time limit the process is ended, even if it is stuck."""
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
        """Watch an import of the target, so that the guard knows if the import ended the process."""
        self.doing("import")
        yield
        self.doing("nothing")

    def doing(self, what: str, text: str = "") -> None:
        """Record the state for the guard: `import`, `trial`, `nothing`, or `refused` with the reason."""
        pid = os.getpid()
        said = {"pid": str(pid), "born": born(pid), "what": what, "since": str(time.monotonic()), "text": text}
        said |= {"limit": str(self.timeout), "began_with": str(self.began_with)}
        # renamed into place, so that the guard never reads a half-written file
        temporary = self.folder / f"{self.worker}.said"
        temporary.write_text(json.dumps(said), encoding="utf-8")
        temporary.replace(self.folder / f"{self.worker}.doing")

    def close(self) -> None:
        """Close the files."""
        faulthandler.disable()
        for file in (self.case_file, self.trace_file):
            file.close()

    def note(self, case: object) -> None:
        """Record the case that is checked next."""
        _rewrite(self.case_file, str(case))


def _rewrite(file: IO[str], text: str) -> None:
    file.seek(0)
    file.truncate()
    file.write(text)
    file.flush()


def crashed(folder: Path, worker: str, key: Key, timeout: float) -> tuple[Result, bool]:
    """The result of a trial whose worker died, from the worker's and the guard's files; and whether it was late."""
    clause, subject, dtype = key
    case, trace, ended = (_read(folder / f"{worker}.{kind}") for kind in ("case", "trace", "ended"))
    (folder / f"{worker}.ended").unlink(missing_ok=True)  # a later process may have the same name
    if ended:
        message = ended
    elif trace.startswith("Timeout"):
        message = f"{LATE} {timeout:g} s"
    elif fatal := re.search(r"Fatal Python error: (.+)|Windows fatal exception: (.+)", trace):
        message = f"killed the process: {fatal.group(1) or fatal.group(2)}"
    else:
        message = "ended the process without an error: an exit call, a kill signal, or memory ran out"
    late = message.startswith(LATE)
    if place := _place(trace):
        message += f"\nat       {place}"
    result = Result(clause, subject, dtype, status=CRASHED, case=case or None, found=case or None, message=message)
    return result, late


def last_word(folder: Path, worker: str) -> str:
    """The last state that a worker recorded; empty if it has recorded none."""
    text = _read(folder / f"{worker}.doing")
    return str(json.loads(text)["what"]) if text else ""


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace").strip() if path.exists() else ""


def _place(trace: str) -> str:
    """The innermost frames outside the suite, taken from the thread that ran the suite."""
    threads = re.split(r"(?m)^(?:Current thread|Thread) .*$", trace)[1:]
    own = str(Path(__file__).parents[1])
    running = next((thread for thread in threads if own in thread), threads[0] if threads else "")
    frames = re.findall(r'File "(.+)", line (\d+) in (\S+)', running)
    outside: list[str] = []
    for file, line, function in frames:
        if file.startswith(own) and outside:
            break
        outside.append(f"{file}:{line} in {function}")
    return "\n         from ".join(outside[:3])


class Events:
    """The events of a run, one JSON object per line. The file can be read while it is written."""

    def __init__(self, folder: Path) -> None:
        self.path, self._read = folder / "events.jsonl", 0

    def write(self, **event: object) -> None:
        """Append one event. Several processes may write to the file."""
        line = (json.dumps(event) + "\n").encode()
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            while line:
                line = line[os.write(descriptor, line) :]
        finally:
            os.close(descriptor)

    def new(self) -> list[dict[str, Any]]:
        """The complete events since the last call. Polling does not read the whole file of a long run each time."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self._read)
            written, newline, _ = file.read().rpartition(b"\n")
        self._read += len(written) + len(newline)
        return [json.loads(line) for line in written.splitlines()]


def judged(folder: Path) -> set[tuple[str, ...]]:
    """The trials for which a folder has an event: a result, or a failure of the suite."""
    events = Events(folder).new()
    results = {(e["result"]["clause"], e["result"]["subject"], e["result"]["dtype"]) for e in events if "result" in e}
    return results | {tuple(e["where"].split()) for e in events if "error" in e}
