"""Right layers of each convention that a target may declare, with the clauses in which the convention shows."""

from __future__ import annotations

from typing import Any

from tests.baselines import conventions
from tests.baselines.conventions import DropsTheMiddle, declaring
from tests.baselines.linear import Right

DROPPING = tuple(f"LAY-DROP-{word}" for word in ("MASK", "BWD", "REL", "ALL", "EVAL", "NEEDS", "MID"))
OF_BIAS = ("DORA-FWD", "DORA-BWD-DM", "DORA-BIAS", "DORA-MERGE", "DORA-UNMERGE", "DORA-DROP", "DORA-MIXED")
OF_DROPOUT = ("DORA-DROP", "DORA-DROP-PRE", "DORA-DROP-POST")
OF_AUTOCAST = ("LAY-AMP", "LAY-AMP-ENTRY", "LAY-AMP-CHANGED")
OF_MIXED = ("LAY-FWD-MIXED", "LAY-BWD-MIXED")
OF_SCALE = ("LAY-FWD-SCALE", "LAY-BWD-SCALE", "LAY-REL-SCALE", "LAY-SCALING")
COPIED = ("LAY-COPY",)

CONVENTIONS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "drops between A and B": (DropsTheMiddle(), (*DROPPING, "LIN-DROP-MID")),
    "scales DoRA's bias": (declaring(conventions.ScaledBias, dora_bias="scaled"), OF_BIAS),
    "drops the adapter of DoRA": (declaring(conventions.DroppedAdapter, dora_dropout="adapter"), OF_DROPOUT),
    "a zero row is NaN": (declaring(conventions.Unchecked, dora_zero_row="nonfinite"), ("DORA-ZERO-ROW",)),
    "a zero row stays zero": (declaring(conventions.ZeroFactor, dora_zero_row="zero"), ("DORA-ZERO-ROW",)),
    "a zero row trains": (declaring(conventions.BaseFactor, dora_zero_row="base"), ("DORA-ZERO-ROW",)),
    "names of its own": (declaring(conventions.OwnNames, state_names="other"), ("LAY-STATE-NAMES", "LAY-STATE")),
    "not pickled": (declaring(conventions.HoldsALambda, pickling="absent"), COPIED),
    "x's dtype under autocast": (declaring(conventions.KeepsTheDtype, autocast="input dtype"), OF_AUTOCAST),
    "rounds the adapter": (declaring(conventions.RoundsTheAdapter, adapter_dtype="input dtype"), OF_MIXED),
    "casts of a region": (Right(conventions.KeepsCasts), ("LAY-AMP", "LAY-AMP-CHANGED")),
    "saves the merged weight": (declaring(conventions.SavesTheMergedWeight, merged_state="merged"), ("MRG-STATE",)),
    "alpha of 0 means the rank": (declaring(conventions.RankForZero, zero_alpha="rank"), OF_SCALE),
    "alpha first": (Right(conventions.AlphaFirst), ("LAY-FWD", "LAY-BWD-DA", "LAY-FWD-OVERFLOW")),
}
