"""A case of a benchmark: the costs of the frozen layer, and of each target's layer around a copy of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from conformance.bench.work import Work
from conformance.report.record_json import as_json

FROZEN = "nn.Linear, frozen"
MEASURED = "measured"
UNRANKED = "measured, not ranked"
UNSUPPORTED = "does not declare the dtype"


@dataclass(frozen=True)
class Spread:
    """The median and the two quartiles of several ratios."""

    median: float
    quartiles: tuple[float, float]


@dataclass(frozen=True)
class Costs:
    """The costs of a training step of a layer.

    Attributes:
        seconds: the median over the rounds.   over: for each other layer, the ratio of times of the same round.
        flops_per_second, bytes_per_second: the formula's work in the median time, and its share of each ceiling.
        over_roofline: the median time ÷ the least time that the ceilings allow.
        flops_counted: operations that torch's counter sees.
        saved_bytes: memory that forward saves for backward.   peak_bytes: the largest memory in use at a time.
    """

    seconds: float
    rounds: tuple[float, ...]
    over: Mapping[str, Spread]
    flops_per_second: float
    of_flops_ceiling: float
    bytes_per_second: float
    of_bytes_ceiling: float
    over_roofline: float
    flops_counted: int
    saved_bytes: int
    peak_bytes: int


@dataclass(frozen=True)
class Row:
    """A layer of a case.

    Attributes:
        target: the target of the layer; None for the frozen one.
        status: `MEASURED`, `UNRANKED`, `UNSUPPORTED`, or a sentence on its error.
        costs: None for a layer that was not measured.
    """

    label: str
    target: str | None
    status: str
    costs: Costs | None = None

    @property
    def ratio(self) -> float:
        """The median ratio over the frozen layer; infinite for a layer that was not measured."""
        return self.costs.over[FROZEN].median if self.costs else float("inf")

    def to_json(self) -> dict[str, Any]:
        """The row as a JSON object, with its costs among its keys."""
        found: dict[str, Any] = {"label": self.label, "target": self.target, "status": self.status}
        return found | (as_json(self.costs) if self.costs else {})


@dataclass(frozen=True)
class LeastWork:
    """The least work of a forward and of a backward pass, of the frozen and of an adapted layer."""

    frozen: tuple[Work, Work]
    adapted: tuple[Work, Work]


@dataclass(frozen=True, kw_only=True)
class MeasuredCase:
    """A case: its size, dtype and dropout, the frozen layer, and the layers of targets, the fastest first."""

    case: str
    M: int
    K: int
    N: int
    r: int
    dtype: str
    dropout: float
    dropout_position: str | None
    memory_efficient: bool
    least_work: LeastWork
    frozen: Row
    layers: tuple[Row, ...]

    @property
    def placed(self) -> list[tuple[str, Costs]]:
        """The labels and costs of the ranked layers, in the order of their places."""
        return [(row.label, row.costs) for row in self.layers if row.status == MEASURED and row.costs]

    def to_json(self) -> dict[str, Any]:
        """The case as a JSON object."""
        found: dict[str, Any] = as_json(self)
        return found | {"frozen": self.frozen.to_json(), "layers": [row.to_json() for row in self.layers]}
