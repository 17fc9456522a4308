"""The files of `loraspec demo train`: a table, all figures as JSON, a plot, and adapters."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from conformance.demo import plot
from conformance.demo.output import difference, json_text, line, seconds_of, write_files
from conformance.demo.target_comparison import TargetComparison

HEADINGS = ("target", "s/step", "÷ first", "trained", "first loss", "last loss", "Δ loss", "Δ norm")
NOTES = (
    "s/step is the median over the steps, in which the targets take turns; ÷ first is the median ratio to the first "
    "target's time. Δ loss is the largest difference between a step's loss and the first target's, Δ norm the largest "
    "relative difference of the gradient norms before clipping. Each step is a window of two micro-batches, the last "
    "step of one; AdamW's learning rate falls to a tenth."
)


def write(folder: Path, found: TargetComparison, learners: list[Any]) -> None:
    """Write the three files, and the adapters of each target in a separate folder."""
    contents = {
        "losses.png": plot.curves(found.model.name, found.runs),
        "train.json": json_text(found.to_json()),
        "train.md": markdown(found).encode(),
    }
    with tempfile.TemporaryDirectory(dir=folder, prefix=".adapters-") as held:
        for learner in learners:  # save all before the rest, so that an error here leaves no files
            learner.save(Path(held, learner.run.target.replace(" ", "-")))
        write_files(folder, contents)
        shutil.copytree(held, folder / "adapters", dirs_exist_ok=True)


def rows(found: TargetComparison) -> list[tuple[str, ...]]:
    """The table's rows, one for each target, with cells in the order of `HEADINGS`."""
    return [
        (
            run.target,
            seconds_of(run.median_seconds),
            f"{run.times_first:.2f}",
            f"{run.trained:,}",
            _loss(run.losses[0]),
            _loss(run.final_loss),
            difference(run.off_first),
            difference(run.off_norm),
        )
        for run in found.runs
    ]


def _loss(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.6f}"


def sentences(found: TargetComparison) -> list[str]:
    """The sentences that say whether the losses agree."""
    first, *others = found.runs
    band = f"{found.band:.2g} of the first loss of {first.target}'s"
    said = [f"{run.target}: every loss is {'within' if run.in_band else 'NOT within'} {band}." for run in others]
    if found.wanted.base:
        said.append(
            f"{first.target} has float layers, with the numbers that the codes of the packed layers stand for. The "
            "band is the most that rounding explains; conformance/demo/packed_base.py derives it."
        )
    return said


def markdown(found: TargetComparison) -> str:
    """The table, with the model and settings above it and the sentences below it."""
    lines = [
        "# Fine-tuning",
        "",
        f"- {found.model.about}.",
        f"- {found.wanted.steps} steps, seed {found.wanted.seed}{_base(found)}.",
    ]
    lines += ["", NOTES, "", line(HEADINGS), line(["---"] + ["---:"] * (len(HEADINGS) - 1))]
    lines += [line(row) for row in rows(found)]
    lines += ["", *(f"- {sentence}" for sentence in sentences(found)), "", "![loss curves](losses.png)", ""]
    lines += [f"{found.machine}; " + ", ".join(f"{k} {v}" for k, v in found.versions.items()) + "."]
    return "\n".join(lines) + "\n"


def _base(found: TargetComparison) -> str:
    return f", adapted layers packed in {found.wanted.base}" if found.wanted.base else ""


def show(found: TargetComparison, folder: Path) -> None:
    """The same table on the terminal."""
    from rich.table import Table

    from conformance.report.terminal import console

    table = Table(title=f"fine-tuning {found.model.name}{_base(found)}, {found.wanted.steps} steps")
    for number, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="left" if number == 0 else "right", no_wrap=True)
    for row in rows(found):
        table.add_row(*row)
    out = console()
    out.print(table)
    for sentence in (NOTES, *sentences(found)):
        out.print(sentence)
    out.print(f"written to {folder}: losses.png, train.json, train.md, and adapters/ in PEFT's layout")
