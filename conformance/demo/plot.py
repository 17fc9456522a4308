"""The loss curves of all modes in one plot."""

from __future__ import annotations

import io
from typing import Any

STYLES: dict[str, dict[str, Any]] = {  # from wide to narrow, so that curves that coincide all show
    "torch": {"color": "#c9c9c9", "linewidth": 8, "solid_capstyle": "round"},
    "disable": {"color": "#0072b2", "linewidth": 4},
    "simulate": {"color": "#f0e442", "linewidth": 1.8},
    "execute": {"color": "#d55e00", "linestyle": "none", "marker": "o", "markersize": 7, "markerfacecolor": "none"},
    "remote": {"color": "#000000", "linestyle": "none", "marker": "x", "markersize": 5},
}


def losses(models: list[dict[str, Any]], backend: str) -> bytes:
    """A PNG with a panel for each model of a report."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6.4 * len(models), 4.4), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(models), squeeze=False)[0]
    for panel, model in zip(panels, models, strict=True):
        for order, run in enumerate(model["runs"]):
            mode = run["mode"]
            label = f"{mode} ({backend})" if "marker" in STYLES[mode] else mode
            steps = range(1, len(run["losses"]) + 1)
            panel.plot(steps, run["losses"], label=label, zorder=3 + order, clip_on=False, **STYLES[mode])
        panel.set_title(f"{model['name']}: loss of each mode", fontsize=11)
        panel.set_xlabel("training step")
        panel.set_ylabel("cross-entropy of the batch")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.set_ylim(bottom=0)
        panel.grid(color="#e6e6e6", linewidth=0.8)
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(edgecolor="none", framealpha=0.9).set_zorder(20)
    held = io.BytesIO()
    figure.savefig(held, format="png", dpi=150)
    return held.getvalue()
