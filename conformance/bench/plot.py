"""The plots: time ratios to the frozen layer against M, K, N and r, and the roofline."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from typing import Any

from conformance.bench.measured_case import FROZEN, Costs, MeasuredCase
from conformance.bench.report import BenchReport
from conformance.errors import UsageError

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
MARKERS = "osD^vPX"
PANELS = [["M", "K", "roofline"], ["N", "r", "roofline"]]


def check_installed() -> None:
    """Check that matplotlib is installed, before anything is measured.

    Raises:
        UsageError: with the command that installs it.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("--plot needs matplotlib: pip install 'loraspec[demo]'")


def drawn(found: BenchReport) -> bytes:
    """A PNG of a report that has at least one case."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 7), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    panels: dict[str, Any] = figure.subplot_mosaic(PANELS)  # type: ignore[arg-type]
    for name in "MKNr":
        _ratios(panels[name], name, found.cases)
    _roofline(panels["roofline"], found)
    for panel in panels.values():
        panel.grid(color="#e6e6e6", linewidth=0.8)
        panel.spines[["top", "right"]].set_visible(False)
    panels["M"].legend(edgecolor="none", fontsize=8)
    held = io.BytesIO()
    figure.savefig(held, format="png", dpi=130)
    return held.getvalue()


def styles(cases: Sequence[MeasuredCase]) -> dict[str, dict[str, Any]]:
    """A colour and a marker for each layer, the same in every panel."""
    labels = sorted({row.label for case in cases for row in case.layers})
    number = {label: index % len(COLOURS) for index, label in enumerate(labels)}
    return {label: {"color": COLOURS[i], "marker": MARKERS[i]} for label, i in number.items()}


def points(cases: Sequence[MeasuredCase], label: str) -> list[tuple[MeasuredCase, Costs]]:
    """The cases in which a layer has a place, with its costs."""
    return [(case, costs) for case in cases for placed, costs in case.placed if placed == label]


def _ratios(panel: Any, name: str, cases: Sequence[MeasuredCase]) -> None:
    for label, style in styles(cases).items():
        here = [(getattr(case, name), costs.over[FROZEN]) for case, costs in points(cases, label)]
        below = [over.median - over.quartiles[0] for _, over in here]
        above = [over.quartiles[1] - over.median for _, over in here]
        ratios = [over.median for _, over in here]
        sizes = [size for size, _ in here]
        panel.errorbar(sizes, ratios, yerr=(below, above), linestyle="none", label=label, alpha=0.8, **style)
    panel.axhline(1, color="#7f7f7f", linewidth=1)
    panel.set_xscale("log", base=2)
    panel.set_xlabel(name)
    panel.set_ylabel("time ÷ frozen nn.Linear")


def _roofline(panel: Any, found: BenchReport) -> None:
    limits = found.ceilings
    intensities = []
    for label, style in styles(found.cases).items():
        costs = [costs for _, costs in points(found.cases, label)]
        x = [each.flops_per_second / each.bytes_per_second for each in costs]
        panel.plot(x, [each.flops_per_second for each in costs], linestyle="none", alpha=0.8, **style)
        intensities += x
    for dtype, most in limits.flops.items():
        knee = most / limits.bytes
        ends = [min([knee / 4, *intensities]), knee, max([knee * 4, *intensities])]
        panel.plot(ends, [min(most, limits.bytes * x) for x in ends], color="#7f7f7f", linewidth=1.2)
        panel.annotate(dtype, (ends[-1], most), ha="right", va="bottom", fontsize=8)
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.set_xlabel("FLOP per byte that must move")
    panel.set_ylabel("FLOP/s of the formula, and the measured ceilings")
