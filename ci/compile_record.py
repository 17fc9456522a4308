"""The record of compilation results, `ci/compiled.csv`: a line for each job, with the digest of its source."""

import csv
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ci.compile_jobs import Job

RECORD = Path(__file__).with_name("compiled.csv")


@dataclass(frozen=True)
class Measured:
    """The result of one compilation.

    Attributes:
        instructions: the tensor-core instructions, or `fma`.   descriptors: whether tensor descriptors move tiles.
        fused: whether float64 multiplications are fused with additions.
    """

    registers: int
    spill_bytes: int
    shared_bytes: int
    instructions: str
    descriptors: bool
    fused: bool


def labels(job: Job) -> dict[str, str | int | bool]:
    """The columns that identify a job."""
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
    """Write a record of these jobs, their digests and their results."""
    cells = [{**labels(job), **asdict(measured), "digest": digest} for job, digest, measured in rows]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, cells[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(cells)


def read(path: Path = RECORD) -> dict[str, Measured]:
    """The result for each digest; empty if there is no record.

    Raises:
        ValueError: naming the first incomplete line.
    """
    if not path.exists():
        return {}
    found = {}
    with path.open(encoding="utf-8", newline="") as file:
        for number, cells in enumerate(csv.DictReader(file), 2):
            try:
                found[cells["digest"]] = Measured(**{f.name: PARSED[f.type](cells[f.name]) for f in fields(Measured)})
            except (KeyError, TypeError, ValueError):
                raise ValueError(f"{path.name}, line {number} is not a row of a compilation: {cells}") from None
    return found


PARSED: dict[Any, Callable[[str], Any]] = {int: int, str: str, bool: {"True": True, "False": False}.__getitem__}
