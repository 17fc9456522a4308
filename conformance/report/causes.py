"""A cause: failing clauses that have one reason, led by the clause that says it best."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cause:
    """Failing clauses with one cause, and the known defect that fails like it.

    Attributes:
        clause: the clause that says it best.   follows: the other failing clauses of the cause.
        fits: whether a known defect fails like this; where it does not, the nearest is named.
        defect: the end of "an implementation that …"; None where no known defect is near.
        twin: the known-bad twin that has the defect.
        precision: the share of the twin's clauses, among those judged here, that fail here.
        recall: the share of this cause's clauses that the twin fails.
    """

    clause: str
    follows: tuple[str, ...] = ()
    fits: bool = False
    defect: str | None = None
    twin: str | None = None
    precision: float | None = None
    recall: float | None = None

    @property
    def clauses(self) -> tuple[str, ...]:
        """All clauses of the cause, the leading one first."""
        return (self.clause, *self.follows)

    @property
    def sentence(self) -> str:
        """What fails like this, and how well it fits."""
        if self.defect is None:
            return "no known defect fails like this"
        known = f"an implementation that {self.defect} (twin {self.twin})"
        if not self.fits and self.precision == 1:
            return f"fails the same clauses as {known}, with another message"
        if not self.fits:
            return f"no known defect fails like this; the nearest is {known}"
        fits = f"{self.precision:.0%} of its failures occur here, and make up {self.recall:.0%} of this cause"
        return f"fails as {known}: {fits}"
