"""Right layers of each convention that a target may declare, with the clauses in which the convention shows."""

from __future__ import annotations

from typing import Any

from tests.baselines import conventions
from tests.baselines.conventions import DropsTheMiddle, declaring
from tests.baselines.linear import Right

DROPPING = tuple(f"LAY-DROP-{word}" for word in ("MASK", "BWD", "REL", "ALL", "EVAL", "NEEDS", "MID"))
OF_BIAS = ("DORA-FWD", "DORA-BWD-DM", "DORA-BIAS", "DORA-MERGE", "DORA-UNMERGE", "DORA-DROP", "DORA-MIXED")
OF_DROPOUT = ("DORA-DROP", "DORA-DROP-PRE", "DORA-DROP-POST")
COPIED = ("LAY-COPY", "LAY-USED-COPY", "MRG-COPY")

CONVENTIONS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "drops between A and B": (DropsTheMiddle(), (*DROPPING, "LIN-DROP-MID")),
    "scales DoRA's bias": (declaring(conventions.ScaledBias, dora_bias="scaled"), OF_BIAS),
    "drops the adapter of DoRA": (declaring(conventions.DroppedAdapter, dora_dropout="adapter"), OF_DROPOUT),
    "a zero row is NaN": (declaring(conventions.Unchecked, dora_zero_row="nonfinite"), ("DORA-ZERO-ROW",)),
    "a zero row stays zero": (declaring(conventions.ZeroFactor, dora_zero_row="zero"), ("DORA-ZERO-ROW",)),
    "a zero row trains": (declaring(conventions.BaseFactor, dora_zero_row="base"), ("DORA-ZERO-ROW",)),
    "names of its own": (declaring(conventions.OwnNames, state_names="other"), ("LAY-STATE-NAMES", "LAY-STATE")),
    "not pickled": (declaring(conventions.HoldsALambda, pickling="absent"), COPIED),
    "alpha first": (Right(conventions.AlphaFirst), ("LAY-FWD", "LAY-BWD-DA", "LAY-FWD-OVERFLOW")),
}
