"""The files of `loraspec demo private-training`: a table, all figures as JSON, and a plot; all of them or none."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from conformance.demo import plot
from conformance.demo.mode_comparison import ModelReport, PrivateTraining
from conformance.report import files

HEADINGS = (
    "model",
    "mode",
    "s/step",
    "CPU s",
    "up/step",
    "down/step",
    "key",
    "last loss",
    "Δ torch",
    "Δ disable",
)
NOTES = (
    "s/step is the median over the steps; CPU s is the median CPU time of all threads of the client. Up and down are "
    "the encrypted inputs and results of one step; the key is the evaluation key, sent once. Δ is the largest "
    "difference between a step's loss and that of mode torch, or of mode disable."
)


@contextmanager
def reserved(folder: Path) -> Iterator[None]:
    """Check that a folder is writable, creating it if necessary; remove a created folder if the block fails.

    Raises:
        UsageError: if the folder is not writable.
    """
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    files.prepare(folder)
    try:
        yield
    except BaseException:
        with suppress(OSError):
            for path in new:
                path.rmdir()
        raise


def write(folder: Path, found: PrivateTraining) -> None:
    """Write the three files."""
    contents = {
        "losses.png": plot.losses(found.models, found.settings.wanted.backend),
        "private-training.json": json_text(found.to_json()),
        "private-training.md": markdown(found).encode(),
    }
    write_files(folder, contents)


def json_text(found: dict[str, Any]) -> bytes:
    """All figures as JSON text."""
    return (json.dumps(found, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def write_files(folder: Path, contents: dict[str, bytes]) -> None:
    """Write the files under temporary names, and rename them once all are complete."""
    temporary: dict[str, Path] = {}
    try:
        for name, content in contents.items():
            handle, path = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
            temporary[path] = folder / name
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            os.chmod(path, 0o644)
        for path, final in temporary.items():
            os.replace(path, final)
    finally:
        for path in temporary:
            Path(path).unlink(missing_ok=True)


def rows(found: PrivateTraining) -> list[tuple[str, ...]]:
    """The table's rows, one for each run, with cells in the order of `HEADINGS`."""
    shown = []
    for model in found.models:
        for run in model.runs:
            sent = (run.run.up, run.run.down, run.run.evaluation_key)
            figures = [f"{run.final_loss:.6f}", difference(run.off_torch), difference(run.off_disable)]
            times = (run.median_seconds, run.median_cpu_seconds)
            shown.append((model.name, run.run.mode, *map(seconds_of, times), *map(size_of, sent), *figures))
        if model.estimate is not None:
            step, mode = model.estimate.estimate, f"{model.estimate.modes[0]} (est.)"
            times = (step.seconds, step.cpu_seconds)
            about = [f"≈{text}" for text in (*map(seconds_of, times), *map(size_of, (step.up, step.down)))]
            shown.append((model.name, mode, *about, size_of(model.estimate.evaluation_key), "–", "–", "–"))
    return shown


def sentences(found: PrivateTraining) -> list[str]:
    """The sentences below the table."""
    said = []
    for model in found.models:
        for run in model.runs:
            if run.equals_simulate is not None:
                verdict = "are those of simulate, bit for bit"
                if not run.equals_simulate:
                    verdict = f"differ from those of simulate, losses by up to {run.off_simulate:.2g}"
                said.append(f"{model.name}, {run.run.mode}: all losses and the trained adapters {verdict}.")
        if model.estimate is not None:
            step = model.estimate.estimate
            said.append(
                f"{model.name}, {' and '.join(model.estimate.modes)}: an estimate, no encrypted step was run. A step "
                f"multiplies {step.rows} rows and gives {step.cells} results; one row of each shape of product "
                "was encrypted, multiplied and decrypted, and its time and size taken times the number of rows."
            )
    if "remote" in found.settings.wanted.modes:
        how = "plain HTTP on this machine" if found.settings.wanted.tls is None else "TLS"
        said.append(f"Mode remote: a server in another process, over {how}, with a bearer token.")
    if not found.settings.secure:
        said.append(f"The parameter set {found.settings.wanted.backend} is not secure: it is for tests alone.")
    return said


def markdown(found: PrivateTraining) -> str:
    """The table, with the models and settings above it and the sentences below it."""
    lines = ["# Private training", ""]
    lines += [f"- {model.name}: {model.about}." for model in found.models]
    wanted = found.settings.wanted
    steps = ", ".join(f"{wanted.steps_of(model.name)} of {model.name}" for model in found.models)
    command = f"steps: {steps}; seed {wanted.seed}, parameter set {wanted.backend}"
    lines += [f"- {command}, implementation {wanted.implementation}.", "", NOTES, ""]
    lines += [line(HEADINGS), line(["---"] * 2 + ["---:"] * (len(HEADINGS) - 2))]
    lines += [line(row) for row in rows(found)]
    lines += ["", *(f"- {sentence}" for sentence in sentences(found)), ""]
    for model in found.models:
        lines += [f"The losses of {model.name}:", "", *losses(model), ""]
    lines += ["![loss curves](losses.png)", ""]
    lines += [f"{found.machine}; " + ", ".join(f"{k} {v}" for k, v in found.versions.items()) + "."]
    return "\n".join(lines) + "\n"


def losses(model: ModelReport) -> list[str]:
    """A Markdown table with a row for each step and a column for each mode, in all digits of a float32."""
    runs = [compared.run for compared in model.runs]
    lines = [line(["step", *(run.mode for run in runs)]), line(["---:"] * (len(runs) + 1))]
    for number, step in enumerate(zip(*(run.losses for run in runs), strict=True)):
        lines.append(line([str(number + 1), *(f"{loss:.9g}" for loss in step)]))
    return lines


def show(found: PrivateTraining, folder: Path) -> None:
    """The same table on the terminal."""
    from rich.table import Table

    from conformance.report.terminal import console

    table = Table(title="private training")
    for number, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="left" if number < 2 else "right", no_wrap=True)
    names = [model.name for model in found.models]
    for row in (shown := rows(found)):
        last = row is shown[-1] or shown[shown.index(row) + 1][0] != row[0]
        table.add_row(*row, end_section=last and len(names) > 1)
    out = console()
    out.print(table)
    for sentence in (NOTES, *sentences(found)):
        out.print(sentence)
    out.print(f"written to {folder}: losses.png, private-training.json, private-training.md")


def line(cells: Any) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def seconds_of(seconds: float) -> str:
    """Three digits, in hours for long times."""
    if seconds >= 7200:
        return f"{seconds / 3600:.3g} h"
    return f"{seconds:.3g} s" if seconds < 1000 else f"{seconds:.0f} s"


def size_of(number: int) -> str:
    """Three digits of a number of bytes; – for none."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if number >= size:
            return f"{number / size:.3g} {unit}" if number < 1000 * size else f"{number / size:.0f} {unit}"
    return f"{number} B" if number else "–"


def difference(value: float | None) -> str:
    """Two digits; – if there is no run to compare with."""
    if value is None:
        return "–"
    return "0" if value == 0 else f"{value:.2g}"
