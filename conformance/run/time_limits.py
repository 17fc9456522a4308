"""How long a trial may take, and which trials are not worth their time after many that did not end."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable

from conformance.report.trial_keys import Key

LEAST = 5.0  # seconds that any trial is given: what is imported or compiled on the way takes that on a busy machine
SLACK = 20.0  # how much longer than expected a trial may take once others did not end
PATIENCE = 20  # ends of a process, of whatever kind, after which trials like those are not tried any more
# Full time limits that each worker may spend on trials that do not end: after the first, subjects of which more trials
# were late than came to an end are not tried any more, after the second, subjects of which any was late.
PATIENT, IMPATIENT = 1.25, 2.0
FEW = 3  # late trials that are not many yet


class Limits:
    """The time limits of one run.

    The first trial that does not end costs the full limit. Those after it are given what they are expected to take,
    with slack, at the speed that the target has shown so far, and more on a busy machine.

    Args:
        most: seconds, the full limit.   workers: how many trials run at a time.
        expected: seconds that a trial takes on `optimized`.
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
        """A trial came to its end."""
        self._done[key[1]] += 1
        self._took += seconds
        self._was_expected += self.expected(key)

    def died(self, key: Key, late: float | None) -> None:
        """A trial ended its process, or was ended after so many seconds because it was late."""
        self._deaths.append(key)
        if late is not None:
            self._late[key[1]] += 1
            self._wasted += late

    def said(self, seconds: float) -> str:
        """What a message adds on a limit below the full one; empty for that."""
        late = sum(self._late.values())
        return f" (the limit was {self.most:g} s until {_trials(late)} did not end)" if seconds < self.most else ""

    def hopeless(self, key: Key) -> str | None:
        """Why a trial is not worth its time; None for one that is."""
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
    """How many processes share a processor: on a busy machine a trial takes so many times as long."""
    return max(1.0, round(os.getloadavg()[0] / (os.cpu_count() or 1)))


def _trials(count: int) -> str:
    return f"{count} trial{'s' * (count != 1)}"
