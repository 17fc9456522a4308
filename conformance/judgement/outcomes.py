"""What a check says of a case besides that it passes: violated, inconclusive, or refused by the target."""

from __future__ import annotations


class Violation(Exception):  # noqa: N818  (a verdict on the target, not an error of the suite)
    """A target broke a clause: what was seen, what was expected, and the worst error ÷ budget.

    is_slow: to see it again takes a time limit, so that no smaller case is looked for.
    """

    def __init__(self, message: str, ratio: float | None = None, *, is_slow: bool = False) -> None:
        super().__init__(message)
        self.ratio, self.is_slow = ratio, is_slow


class Inconclusive(Exception):  # noqa: N818
    """A case on which a wrong implementation could pass too; another one is drawn."""


class Refused(Exception):  # noqa: N818
    """The target raised NotImplementedError: it refuses this input."""


def require(condition: bool, message: str) -> None:
    """State a requirement that needs no budget.

    Raises:
        Violation: with the message, if the condition does not hold.
    """
    if not condition:
        raise Violation(message)
