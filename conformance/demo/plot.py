"""Loss curves: of all modes of a split model, and of all targets of a fine-tuning."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

from conformance.demo.mode_comparison import ModelReport
from conformance.demo.target_comparison import TargetRun

STYLES: dict[str, dict[str, Any]] = {  # from wide to narrow, so that coinciding curves stay visible
    "torch": {"color": "#c9c9c9", "linewidth": 8, "solid_capstyle": "round"},
    "disable": {"color": "#0072b2", "linewidth": 4},
    "simulate": {"color": "#f0e442", "linewidth": 1.8},
    "execute": {"color": "#d55e00", "linestyle": "none", "marker": "o", "markersize": 7, "markerfacecolor": "none"},
    "remote": {"color": "#000000", "linestyle": "none", "marker": "x", "markersize": 5},
}


WIDTHS: tuple[dict[str, Any], ...] = (
    {"linewidth": 7, "color": "#c9c9c9"},
    {"linewidth": 3.5, "color": "#0072b2"},
    {"linewidth": 1.5, "color": "#d55e00"},
)


def losses(models: Sequence[ModelReport], backend: str) -> bytes:
    """A PNG with a panel for each model of a report."""

    def draw(panel: Any, model: ModelReport) -> None:
        for order, compared in enumerate(model.runs):
            run, mode = compared.run, compared.run.mode
            label = f"{mode} ({backend})" if "marker" in STYLES[mode] else mode
            steps = range(1, len(run.losses) + 1)
            panel.plot(steps, run.losses, label=label, zorder=3 + order, clip_on=False, **STYLES[mode])

    return _drawn([(f"{model.name}: loss of each mode", draw, model) for model in models], "cross-entropy of the batch")


def curves(name: str, runs: Sequence[TargetRun]) -> bytes:
    """A PNG with one panel: the losses of each target, from a wide line to a narrow one."""

    def draw(panel: Any, runs: Sequence[TargetRun]) -> None:
        for order, run in enumerate(runs):
            style = WIDTHS[order] if order < len(WIDTHS) else {"linewidth": 1.0}
            panel.plot(range(1, len(run.losses) + 1), run.losses, label=run.target, zorder=3 + order, **style)

    return _drawn([(f"{name}: loss of each target", draw, runs)], "cross-entropy of the window")


def _drawn(panels: list[tuple[str, Callable[[Any, Any], None], Any]], measured: str) -> bytes:
    """A PNG of panels side by side. Each panel has a title, a function that draws its curves, and its argument."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6.4 * len(panels), 4.4), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    for panel, (title, draw, data) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        draw(panel, data)
        panel.set_title(title, fontsize=11)
        panel.set_xlabel("training step")
        panel.set_ylabel(measured)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.set_ylim(bottom=0)
        panel.grid(color="#e6e6e6", linewidth=0.8)
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(edgecolor="none", framealpha=0.9).set_zorder(20)
    held = io.BytesIO()
    figure.savefig(held, format="png", dpi=150)
    return held.getvalue()
