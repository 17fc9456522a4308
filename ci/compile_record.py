"""The record of what compilations gave, `ci/compiled.csv`: a line for each job, with the digest of its source."""

import csv
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ci.compile_jobs import Job

RECORD = Path(__file__).with_name("compiled.csv")


@dataclass(frozen=True)
class Measured:
    """What one compilation gave.

    Attributes:
        instructions: those of the tensor cores, or `fma`.   descriptors: whether tiles are moved by them.
        fused: whether float64 multiplications are fused with additions.
    """

    registers: int
    spill_bytes: int
    shared_bytes: int
    instructions: str
    descriptors: bool
    fused: bool


def labels(job: Job) -> dict[str, str | int | bool]:
    """The columns that say which job it is."""
    return {
        "kernel": job.kernel,
        "arch": f"sm_{job.arch}",
        "dtype": job.dtype,
        "compute": job.compute,
        "layout": job.activation or job.layout,
        "dropped": job.dropped,
        "blocks": "x".join(f"{name.removeprefix('BLOCK')[-1:]}{size}" for name, size in job.config.blocks.items()),
        "warps": job.config.num_warps,
        "stages": job.config.num_stages,
    }


def write(rows: Iterable[tuple[Job, str, Measured]], path: Path = RECORD) -> None:
    """Write a record of these jobs, their digests and what they gave."""
    cells = [{**labels(job), **asdict(measured), "digest": digest} for job, digest, measured in rows]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, cells[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(cells)


def read(path: Path = RECORD) -> dict[str, Measured]:
    """What each digest gave; nothing where there is no record.

    Raises:
        ValueError: naming the first line that is not complete.
    """
    if not path.exists():
        return {}
    found = {}
    with path.open(encoding="utf-8", newline="") as file:
        for number, cells in enumerate(csv.DictReader(file), 2):
            try:
                found[cells["digest"]] = Measured(**{f.name: PARSED[f.type](cells[f.name]) for f in fields(Measured)})
            except (KeyError, TypeError, ValueError):
                raise ValueError(f"{path.name}, line {number} is no row of a compilation: {cells}") from None
    return found


PARSED: dict[Any, Callable[[str], Any]] = {int: int, str: str, bool: {"True": True, "False": False}.__getitem__}
