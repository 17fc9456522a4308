"""How alike what was seen of a failure and what is known of a defect are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum

# Words that a twin's message has, and that say nothing of the defect.
VAGUE = ("worst", "error ÷ budget", "elements wrong", "raised", "expected", "returned", "shape", "dtype")
NUMBER = re.compile(r"\d[\d.,e+-]*")
OF_NUMBERS = re.compile(
    r"worst |elements wrong|÷ budget|ratio|as if|all in|column|row|zeros|NaN|infinite|times what|transposed|pattern"
)


class Resemblance(Enum):
    """How much the words of a defect speak for it: the least fit of its clauses, and the factor of its score."""

    SAID = (0.4, 1.5)  # the message has the defect's words
    SAID_BUT_FOR_NUMBERS = (0.5, 1.25)
    UNKNOWN = (0.8, 1.0)  # the defect's words are vague, or its own clause was not judged
    UNSAID = (0.8, 0.6)
    CONTRADICTED = (2.0, 0.2)  # numbers are wrong in one and not in the other: no fit is enough

    @property
    def needed(self) -> float:
        """The least fit of the defect's clauses."""
        return self.value[0]

    @property
    def factor(self) -> float:
        """The factor of the defect's score."""
        return self.value[1]


def resemblance(says: str, texts: Sequence[str]) -> Resemblance:
    """Compare the words of a defect with the messages of its own clauses, of which there are none if they pass.

    Args:
        says: what the message of the defect's own clause contains.
    """
    text = "\n".join(texts)
    if not texts or not says:
        return Resemblance.UNKNOWN
    of_numbers = any(words in text for words in ("worst ", "÷ budget", "elements wrong", "pattern  "))
    if says in VAGUE:
        meant = says in VAGUE[:3]
        return Resemblance.UNKNOWN if says in text or (meant and of_numbers) else Resemblance.CONTRADICTED
    if re.search(rf"{re.escape(says)}(?![.\d])", text):
        return Resemblance.SAID
    if bool(OF_NUMBERS.search(says)) is not of_numbers:
        return Resemblance.CONTRADICTED
    alike = NUMBER.sub("…", says) in NUMBER.sub("…", text)
    return Resemblance.SAID_BUT_FOR_NUMBERS if alike and NUMBER.search(says) else Resemblance.UNSAID
