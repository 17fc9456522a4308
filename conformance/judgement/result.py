"""The judgement of one clause on one subject and dtype. Any process can import this module: it does not need torch."""

from __future__ import annotations

import re
from dataclasses import dataclass

PASS, FAIL, UNSUPPORTED = "pass", "fail", "unsupported"
INCONCLUSIVE, CRASHED = "inconclusive", "crashed"
NOT_CLAIMED, DEVIATION = "not_claimed", "deviation"
WITHOUT = "not judged without"  # begins the message of a clause whose cases need a package that is not installed
STATUSES = (PASS, FAIL, NOT_CLAIMED, UNSUPPORTED, DEVIATION, INCONCLUSIVE, CRASHED)
ANY_DTYPE = "any"  # the dtype of a clause for which dtype has no meaning


@dataclass
class Result:
    """The judgement of one clause on one subject and dtype.

    Attributes:
        status: `pass`, `fail`, `unsupported`, `inconclusive` or `crashed`.
        worst_ratio: largest error ÷ budget over all cases; None if no numbers were compared.
        examples: number of conclusive cases.   inconclusive: number of cases on which a wrong result would pass.
        launches: number of Triton kernels that Triton's interpreter ran.
        case: the shrunk failing case as a string.   found: the failing case before shrinking.
        message: the actual and the expected result.
        met: the runs of operations that lives have met, one bit each, as a hexadecimal number.
    """

    clause: str
    subject: str
    dtype: str
    device: str = "cpu"
    lane: str = "cpu"
    status: str = PASS
    worst_ratio: float | None = None
    examples: int = 0
    inconclusive: int = 0
    launches: int = 0
    seconds: float = 0.0
    case: str | None = None
    found: str | None = None
    message: str | None = None
    met: str | None = None


def without_addresses(text: str) -> str:
    """The text without memory addresses (`<C object at 0x7f…>`), so that it is the same in every process."""
    return re.sub(r"\bat 0x[0-9a-fA-F]+", "at 0x…", text)
