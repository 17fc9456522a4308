"""The outcomes of a check other than a pass: violated, inconclusive, or refused by the target."""

from __future__ import annotations


class Violation(Exception):  # noqa: N818  (a verdict on the target, not an error of the suite)
    """A target broke a clause; the message gives the actual and the expected result, `ratio` the worst error ÷ budget.

    is_slow: reproducing the violation takes a whole time limit, so the case is not shrunk.
    """

    def __init__(self, message: str, ratio: float | None = None, *, is_slow: bool = False) -> None:
        super().__init__(message)
        self.ratio, self.is_slow = ratio, is_slow


class Inconclusive(Exception):  # noqa: N818
    """A case on which a wrong implementation could pass too; another case is drawn."""


class Refused(Exception):  # noqa: N818
    """The target raised NotImplementedError: it refuses this input."""


def require(condition: bool, message: str) -> None:
    """Check a requirement that needs no budget.

    Raises:
        Violation: with the message, if the condition is false.
    """
    if not condition:
        raise Violation(message)
