"""A cause: failing clauses that have one reason, led by the clause that says it best."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cause:
    """Failing clauses with one cause, and the known defect that fails like it.

    Attributes:
        clause: the clause that says it best.   follows: the other failing clauses of the cause.
        defect: the end of "fails as an implementation that …"; None where no known defect fails so.
        twin: the known-bad twin that has the defect.
        precision: the share of the twin's clauses, among those judged here, that fail here.
        recall: the share of this cause's clauses that the twin fails.
    """

    clause: str
    follows: tuple[str, ...] = ()
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
        fits = f"{self.precision or 0:.0%} of its clauses fail here, and {self.recall or 0:.0%} of these are its"
        return f"fails as an implementation that {self.defect} (twin {self.twin}): {fits}"
