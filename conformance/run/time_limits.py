"""The time limit of each trial, and the choice of trials to skip after many trials did not end."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable

from conformance.report.trial_keys import Key

LEAST = 5.0  # the least time limit in seconds; imports and compilation alone may take this long on a busy machine
SLACK = 20.0  # after the first late trial, a limit is this many times the expected time
PATIENCE = 20  # dead processes, of whatever cause, after which similar trials are skipped
# The time wasted on late trials, in full time limits per worker. Beyond the first number, subjects with more late than
# finished trials are skipped; beyond the second, all subjects with a late trial.
PATIENT, IMPATIENT = 1.25, 2.0
FEW = 3  # late trials of a subject that are tolerated in addition to its finished ones


class Limits:
    """The time limits of one run.

    The first late trial uses up the full limit. Later trials get their expected time, scaled by the speed of the
    target so far, by a slack factor, and by the load of the machine.

    Args:
        most: the full limit in seconds.   workers: the number of trials that run at a time.
        expected: the seconds that a trial takes on `optimized`.
    """

    def __init__(self, most: float, workers: int, expected: Callable[[Key], float]) -> None:
        self.most, self.expected = most, expected
        self._whole = most * max(1, workers)
        self._wasted = 0.0
        self._late: Counter[str] = Counter()  # by subject
        self._done: Counter[str] = Counter()
        self._deaths: list[Key] = []
        self._took = self._was_expected = 0.0

    def seconds(self, key: Key) -> float:
        """The limit for a trial that starts now."""
        if not self._late:
            return self.most
        speed = max(1.0, self._took / self._was_expected) if self._was_expected else 1.0
        return min(self.most, max(LEAST, SLACK * speed * self.expected(key)) * busy())

    def finished(self, key: Key, seconds: float) -> None:
        """Record a trial that finished."""
        self._done[key[1]] += 1
        self._took += seconds
        self._was_expected += self.expected(key)

    def died(self, key: Key, late: float | None) -> None:
        """Record a trial whose process died. `late` is the seconds after which a late trial was ended, else None."""
        self._deaths.append(key)
        if late is not None:
            self._late[key[1]] += 1
            self._wasted += late

    def said(self, seconds: float) -> str:
        """The remark that a message adds if the limit was below the full one; else empty."""
        late = sum(self._late.values())
        return f" (the limit was {self.most:g} s until {_trials(late)} did not end)" if seconds < self.most else ""

    def hopeless(self, key: Key) -> str | None:
        """The reason to skip a trial; None if the trial should run."""
        clause, subject, dtype = key
        many = self._late[subject] > FEW + self._done[subject]
        wasted = self._wasted / self._whole
        if (wasted > PATIENT and many) or (wasted > IMPATIENT and self._late[subject]):
            late = sum(self._late.values())
            return f"not tried: {_trials(late)} did not end in time, {self._late[subject]} of {subject} among them"
        count = len(self._deaths)
        if count < PATIENCE:
            return None
        if any(death[:2] == (clause, subject) for death in self._deaths):
            return f"not tried: {count} trials ended their process, this clause's among them"
        if sum(death[1:] == (subject, dtype) for death in self._deaths) >= 3:
            return f"not tried: {count} trials ended their process, several of {dtype} among them"
        return None


def busy() -> float:
    """The number of processes that share a processor, which is the factor by which a trial slows down."""
    return max(1.0, round(os.getloadavg()[0] / (os.cpu_count() or 1)))


def _trials(count: int) -> str:
    return f"{count} trial{'s' * (count != 1)}"
