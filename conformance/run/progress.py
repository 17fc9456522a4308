"""The progress of a run and the time left, on standard error: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

from conformance.judgement.result import CRASHED, FAIL
from conformance.report.terminal import console
from conformance.run.shards import costs

if TYPE_CHECKING:
    from conformance.report.outcome import Outcome
    from conformance.report.plan import Plan
    from conformance.report.trial_keys import Key

AFTER = 5.0  # seconds that a run takes without a word
FIRST, LAST = 15.0, 300.0  # seconds between lines: a fifth of the time so far, within these


class Progress:
    """Follows the trials of a plan.

    Args:
        plan: the plan of the run.   title: the first words of each line, where several targets are run.
        quiet: say nothing at all.
        stream: standard error.   clock: seconds.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        title: str = "",
        quiet: bool = False,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        stream = sys.stderr if stream is None else stream
        self.costs, self.title, self.quiet, self.clock = costs(plan), title, quiet, clock
        self.console = console(stream=stream)
        # not what rich takes for a terminal: FORCE_COLOR asks for colours in a log, not for a bar that moves
        self.draws = stream.isatty() and not self.console.is_dumb_terminal
        self.started = self.said = clock()
        self.known: set[Key] | None = None
        self.bar: Any = None
        self.task: Any = None

    def update(self, outcome: Outcome) -> None:
        """Show how far the run is; results that are there at the first call were there before it."""
        if self.known is None:
            self.known = set(outcome.results)
        now = self.clock()
        if self.quiet or now - self.started < AFTER:
            return
        if self.draws:
            self._draw(self._text(outcome, now), len(outcome.results))
        elif now - self.said >= min(LAST, max(FIRST, (now - self.started) / 5)):
            self.said = now
            self.console.print(f"… {self._text(outcome, now)}")

    def stop(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def _text(self, outcome: Outcome, now: float) -> str:
        bad = sum(result.status in (FAIL, CRASHED) for result in outcome.results.values())
        parts = [f"{len(outcome.results)} of {len(self.costs)} trials"]
        parts += [f"{bad} failing"] if bad else []
        parts.append(duration(now - self.started))
        left = self._left(outcome, now - self.started)
        parts += [f"about {duration(left)} left"] if left is not None else []
        return self.title + ", ".join(parts)

    def _left(self, outcome: Outcome, spent: float) -> float | None:
        """Seconds left, if what is left takes as long a case as what was done; None before anything was done."""
        new = [self.costs.get(key, 0) for key in outcome.results if key not in (self.known or ())]
        left = sum(cost for key, cost in self.costs.items() if key not in outcome.results)
        return spent * left / sum(new) if sum(new) else None

    def _draw(self, text: str, done: int) -> None:
        if self.bar is None:
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bar

            columns = (BarColumn(bar_width=30), TextColumn("{task.description}", markup=False))
            self.bar = Bar(*columns, console=self.console, transient=True)
            self.bar.start()
            self.task = self.bar.add_task(text, total=len(self.costs))
        self.bar.update(self.task, completed=done, description=text)


def duration(seconds: float) -> str:
    """A time as text, as exactly as anyone wants to know it: `90 s`, `12 min`, `2 h 5 min`."""
    if seconds < 120:
        return f"{math.ceil(seconds)} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
