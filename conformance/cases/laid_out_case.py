"""The case of a layer with operands anywhere in memory: the fields that grouped, batched and fused layers share."""

from __future__ import annotations

from dataclasses import dataclass

from conformance.cases.case import Case
from conformance.cases.linear_case import leading_dimensions


@dataclass(frozen=True)
class LaidOutCase(Case):
    """A layer of x [*, k], whose m rows are spread over the `lead` dimensions, with adapters of rank r.

    Fields:
        scale, lead, values, adapter, x, g, w, ab, special, autocast, sizes: as in a LinearCase, for all adapters alike.
    """

    m: int = 1
    k: int = 1
    n: int = 1
    r: int = 1
    scale: float = 1.0
    lead: str = "2d"
    values: str = "integers"
    adapter: str = "same"
    x: str = "packed"
    g: str = "packed"
    w: str = "packed"
    ab: str = "packed"
    special: str = "none"
    autocast: str = "off"
    sizes: str = "free"

    @property
    def leading(self) -> tuple[int, ...]:
        """The leading dimensions of x."""
        return leading_dimensions(self.m, self.lead)

    @property
    def row_count(self) -> int:
        """The number of rows that fit: one for a 1-D x."""
        return 1 if self.lead == "1d" else self.m

    @property
    def whole_scale(self) -> float:
        """The scale, or where it is a fraction a whole number near its reciprocal: a fraction leaves no integers."""
        return self.scale if abs(self.scale) >= 1 else float(round(1 / self.scale))
