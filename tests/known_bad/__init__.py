"""Known-bad twins: implementations with one defect each, and the clause and message that must detect it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from conformance.specification.clause import FORMER
from conformance.specification.groups import group_of


@dataclass(frozen=True)
class KnownBad:
    """An implementation with one defect.

    Attributes:
        name: `<clause>__<defect>`.
        target: a defective object with the group's public names.
        clause: the clause that must fail.   says: what that clause's message must contain.
        groups: the groups whose clauses judge it; recorded.json holds the clauses that fail.
        dtypes: the dtypes in which it is judged.
        source: the project in which the defect was found, or the mistake behind it.
        module: the module that registers it.
        phrase: the defect in words, where the name does not read well: "is copied without its scale".
    """

    name: str
    target: Any
    clause: str
    says: str
    groups: tuple[str, ...]
    dtypes: tuple[str, ...]
    source: str = ""
    module: str = ""
    phrase: str = ""

    @property
    def words(self) -> str:
        """The defect as the end of "an implementation that …": the phrase, or the words of the name."""
        return self.phrase or _words(self.name.partition("__")[2])


REGISTRY: dict[str, KnownBad] = {}


def record(
    defect: str,
    target: Any,
    clause: str,
    *,
    says: str,
    groups: tuple[str, ...] = (),
    dtypes: tuple[str, ...] = ("float32", "bfloat16"),
    source: str = "",
    phrase: str = "",
) -> None:
    """Register a target with one defect as a known-bad twin of a clause; by default the clause's group judges it.

    A former id of a clause stands for the clause.
    """
    clause = FORMER.get(clause, clause)
    name = f"{clause}__{defect}"
    if name in REGISTRY:
        raise ValueError(f"two known-bad twins are named {name}")
    REGISTRY[name] = KnownBad(
        name, target, clause, says, groups or (group_of(clause),), dtypes, source, _being_imported(), phrase
    )


# How messages write tensors, dtypes and names; the other words of a class name are ordinary words.
WRITTEN = {"DX": "dX", "DA": "dA", "DB": "dB", "DM": "dm", "X": "x", "G": "g", "LoraA": "lora_A", "LoraB": "lora_B"}
WORD = re.compile(
    r"NaN|Conv1D|Lora[AB](?![a-z])|(?:Float|Bfloat|Int)\d+|D[XABM](?![a-z])|[A-Z](?=[A-Z][a-z])|[A-Z][a-z]*|\d+"
)


def _words(name: str) -> str:
    """The words of a class name: `LosesTheBaseInDX` gives "loses the base in dX"."""
    found = WORD.findall(name)
    texts = [WRITTEN.get(w) or (w if w in ("NaN", "Conv1D") or len(w) == 1 else w.lower()) for w in found]
    # an A before another word is the article, at the end the matrix
    return " ".join("a" if text == "A" and i + 1 < len(texts) else text for i, text in enumerate(texts))


def _being_imported() -> str:
    """Return the name of the module whose import registers the twin, however deep the call."""
    frame = sys._getframe()
    while frame.f_code.co_name != "<module>" and frame.f_back is not None:
        frame = frame.f_back
    return str(frame.f_globals["__name__"])


def breaks(*clauses: str, **options: Any) -> Callable[[type], type]:
    """Return a decorator that registers an instance of a class as a known-bad twin of each of these clauses.

    The class is named after the defect. It inherits from a right implementation and overrides one thing.
    """

    def register(kind: type) -> type:
        for clause in clauses:
            record(kind.__name__, kind(), clause, **options)
        return kind

    return register
