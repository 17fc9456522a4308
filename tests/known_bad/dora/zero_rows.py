"""Known-bad twins of zero rows: they are not refused, or treated by another convention than the declared one."""

from __future__ import annotations

from torch import Tensor

from tests.baselines.conventions import BaseFactor, Unchecked, ZeroFactor, declaring
from tests.baselines.layer import Layer
from tests.known_bad import record
from tests.known_bad.dora.registration import twin


@twin("DORA-ZERO-ROW", says="expected an error", dtypes=("float32",), source="an epsilon in place of an error")
class DividesByAnEpsilon(Layer):
    def row_norm(self, weight: Tensor) -> Tensor:
        return super().row_norm(weight).clamp_min(1e-6)


for defect, kind, convention, says in (
    ("TrainsAZeroRowThatShouldStayZero", BaseFactor, "zero", "worst    dB"),
    ("KeepsAZeroRowThatShouldTrain", ZeroFactor, "base", "worst    dB"),
    ("DividesByTheNormOfAZeroRow", Unchecked, "zero", "NaN"),
    ("GivesNumbersForAZeroRow", ZeroFactor, "nonfinite", "has finite elements"),
):
    record(defect, declaring(kind, dora_zero_row=convention), "DORA-ZERO-ROW", says=says, dtypes=("float32",))
