"""The progress of encrypted products: a bar on a terminal, lines in a log elsewhere."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

EVERY = 10.0  # seconds between two lines of a log

_log = logging.getLogger(__name__)


class Advance(Protocol):
    """A callback with the rows that are done since the last call, and the bytes that were sent and came."""

    def __call__(self, rows: int, sent: int = 0, came: int = 0) -> None: ...


@contextmanager
def shown_progress(name: str, rows: int, verbose: int) -> Iterator[Advance]:
    """A region in which the progress of a product of so many rows is shown, if verbose is not 0.

    Args:
        name: the name of the module.
    """
    if not verbose:
        yield _hidden
    elif sys.stderr.isatty():
        with _bar(name, rows) as advance:
            yield advance
    else:
        yield _Lines(name, rows)


def _hidden(rows: int, sent: int = 0, came: int = 0) -> None:
    """Show nothing."""


class _Lines:
    """Lines in the log of this module, at most one in ten seconds, and one at the end."""

    def __init__(self, name: str, rows: int) -> None:
        self.name, self.rows = name, rows
        self.done = self.sent = self.came = 0
        self.began = self.last = time.monotonic()

    def __call__(self, rows: int, sent: int = 0, came: int = 0) -> None:
        self.done, self.sent, self.came = self.done + rows, self.sent + sent, self.came + came
        now = time.monotonic()
        if self.done < self.rows and now - self.last < EVERY:
            return
        self.last = now
        left = (now - self.began) * (self.rows - self.done) / max(1, self.done)
        _log.info(
            "%s: %d of %d rows, %s up, %s down, %.1f s, %.0f s left",
            self.name,
            self.done,
            self.rows,
            _bytes(self.sent),
            _bytes(self.came),
            now - self.began,
            left,
        )


@contextmanager
def _bar(name: str, rows: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("rows, {task.fields[sent]} up, {task.fields[came]} down,"),
        TimeRemainingColumn(),
    )
    total = [0, 0]
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(name, total=rows, sent=_bytes(0), came=_bytes(0))

        def advance(rows: int, sent: int = 0, came: int = 0) -> None:
            total[0], total[1] = total[0] + sent, total[1] + came
            progress.update(task, advance=rows, sent=_bytes(total[0]), came=_bytes(total[1]))

        yield advance


def _bytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"
