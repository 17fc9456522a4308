"""The progress of a run and the time left, on standard error: a bar on a terminal, occasional lines elsewhere."""

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

AFTER = 5.0  # seconds of a run before any progress is shown
FIRST, LAST = 15.0, 300.0  # the bounds for the seconds between lines, which are a fifth of the elapsed time


class Progress:
    """Follows the trials of a plan.

    Args:
        plan: the plan of the run.   title: the first words of each line, if several targets are run.
        quiet: show no progress.
        stream: standard error by default.   clock: a function that returns seconds.
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
        # rich's own test is not used: with FORCE_COLOR it takes a log for a terminal, but a log has no moving bar
        self.draws = stream.isatty() and not self.console.is_dumb_terminal
        self.started = self.said = clock()
        self.known: set[Key] | None = None
        self.bar: Any = None
        self.task: Any = None

    def update(self, outcome: Outcome) -> None:
        """Show the progress of the run. Results present at the first call come from an earlier run."""
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
        """Remove the bar."""
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
        """The seconds left, assuming the same time per case as so far; None before the first result."""
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
    """A duration as rounded text: `90 s`, `12 min`, `2 h 5 min`."""
    if seconds < 120:
        return f"{math.ceil(seconds)} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
