"""Compile the changed kernels and configurations ahead of time, and judge the results of all.

No GPU is needed: the triton wheel contains ptxas. A job is not compiled again if `ci/compiled.csv` has an entry for its
source, options, architecture and Triton version; the entry holds the result. The exit status is 1 if a kernel spills,
needs more shared memory than its architecture has, multiplies 16-bit or int8 tiles without a tensor core, or fuses
operations that must round twice; with --all also if the record differs from the results of compilation.
"""

import argparse
import concurrent.futures
import contextlib
import io
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ci import compile_record
from ci.compile_digest import code, digest
from ci.compile_jobs import GROUPED_KERNELS, KERNELS, Job, jobs
from ci.compile_record import Measured, labels
from ci.compile_sources import source_of

SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
TENSOR_CORE = {"tcgen05": "tcgen05.mma", "wgmma": "wgmma.mma_async", "mma": "mma.sync"}
SHOWN = ("registers", "spill_bytes", "shared_bytes", "instructions", "descriptors")


@dataclass(frozen=True)
class Row:
    """A job, the digest of its source, its compilation result, and the faults of the result."""

    job: Job
    digest: str
    measured: Measured

    @property
    def faults(self) -> list[str]:
        """The faults by the current rules, even if the result was recorded earlier."""
        job, measured = self.job, self.measured
        faults = []
        if measured.spill_bytes:
            faults.append(f"spills {measured.spill_bytes} bytes")
        if measured.shared_bytes > SHARED_BYTES[job.arch]:
            limit = f"sm_{job.arch} has {SHARED_BYTES[job.arch]}"
            faults.append(f"wants {measured.shared_bytes} bytes of shared memory, {limit}")
        if job.kernel == "linear_expand" and not measured.descriptors:
            faults.append("moves no tile by a tensor descriptor")
        multiplies = job.kernel in (*KERNELS, *GROUPED_KERNELS, "int8_linear", "linear_expand", "packed_linear")
        if multiplies and job.compute != "float32" and measured.instructions == "fma":
            faults.append(f"multiplies {job.compute} tiles without a tensor core")
        if job.kernel == "int8_linear" and measured.fused:
            faults.append("fuses multiplications with additions, which rounds once where PyTorch rounds twice")
        return faults

    @property
    def columns(self) -> dict[str, str | int | bool]:
        """The columns of the table."""
        return {**labels(self.job), **{name: asdict(self.measured)[name] for name in SHOWN}}


def compiled(job: Job) -> Measured:
    """Compile one job and read its cubin."""
    source = source_of(job)
    given = ASTSource(
        source.kernel,
        signature=source.signature,
        constexprs=source.constants,
        attrs={(i,): [["tt.divisibility", 16]] for i in source.aligned},
    )
    with contextlib.redirect_stdout(io.StringIO()) as log:
        found = triton.compile(given, target=GPUTarget("cuda", job.arch, 32), options=source.options)
    registers = re.search(r"Used (\d+) registers", log.getvalue())
    spills = re.findall(r"(\d+) bytes spill", log.getvalue())
    if registers is None or not spills:
        raise RuntimeError(f"ptxas reported no registers or spills for {job}: {log.getvalue()!r}")
    kinds = [kind for kind, mnemonic in TENSOR_CORE.items() if mnemonic in found.asm["ptx"]]
    return Measured(
        registers=int(registers[1]),
        spill_bytes=sum(map(int, spills)),
        shared_bytes=found.metadata.shared,
        instructions="+".join(kinds) or "fma",
        descriptors="cp.async.bulk.tensor" in found.asm["ptx"],
        fused="fma.rn.f64" in found.asm["ptx"],
    )


def digest_of(job: Job, version: str = triton.__version__) -> str:
    """The digest of a job's source, the compiler's version, and the code that reads the result."""
    return digest(source_of(job), job.arch, version, code(compiled), repr(TENSOR_CORE))


def compile_all(chosen: list[Job]) -> list[Measured]:
    """Compile these jobs, with as many processes as cores."""
    if not chosen:
        return []
    with tempfile.TemporaryDirectory() as cache:
        workers = min(len(os.sched_getaffinity(0)), len(chosen))
        prepared = {"initializer": _prepare, "initargs": (cache,)}
        with concurrent.futures.ProcessPoolExecutor(workers, **prepared) as pool:
            return list(pool.map(compiled, chosen, chunksize=min(4, -(-len(chosen) // workers))))


def _prepare(cache: str) -> None:
    """Have triton print ptxas's log. It does so only when it compiles, so the cache must be empty."""
    triton.knobs.cache.dir = cache
    triton.knobs.nvidia.dump_ptxas_log = True


def differences(rows: Iterable[Row], known: dict[str, Measured]) -> list[str]:
    """The differences between a record and these rows, which are the results of all jobs."""
    found = []
    rows = list(rows)
    for row in rows:
        if row.digest not in known:
            found.append(f"{_named(row.job)} has no entry")
        elif known[row.digest] != row.measured:
            before, now = asdict(known[row.digest]), asdict(row.measured)
            changed = (f"{name} {before[name]} is {now[name]}" for name in now if before[name] != now[name])
            found.append(f"{_named(row.job)}: {', '.join(changed)}")
    superfluous = len({*known} - {row.digest for row in rows})
    return [*found, *([f"{superfluous} entries are of no job"] if superfluous else [])]


def _named(job: Job) -> str:
    return " ".join(str(cell) for cell in labels(job).values() if cell is not False)


def _table(rows: list[Row]) -> str:
    """The rows in columns, each with its faults at the end."""
    cells = [[*rows[0].columns], *(list(map(str, row.columns.values())) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
    faults = ["", *("; ".join(row.faults) for row in rows)]
    return "\n".join(f"{line}  {fault}".rstrip() for line, fault in zip(lines, faults, strict=True))


def main(arguments: list[str], record: Path = compile_record.RECORD) -> int:
    """Compile, print the table, and write the requested files; return 1 if anything is wrong."""
    parser = argparse.ArgumentParser(prog="ci/compile", description=__doc__)
    parser.add_argument("--all", action="store_true", help="compile every job, and compare the results with the record")
    parser.add_argument("--record", action="store_true", help="write the record anew")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    asked = parser.parse_args(arguments)
    wanted = [(job, digest_of(job)) for job in jobs()]
    known = compile_record.read(record)
    anew = [(job, key) for job, key in wanted if asked.all or key not in known]
    given = dict(known)
    given.update(zip((key for _, key in anew), compile_all([job for job, _ in anew]), strict=True))
    rows = [Row(job, key, given[key]) for job, key in wanted]
    faulty = [row for row in rows if row.faults]
    said = [f"{len(rows)} compilations with triton {triton.__version__}, {len(faulty)} faulty; {len(anew)} made now"]
    wrong = differences(rows, known) if asked.all and not asked.record else []
    said += [f"{record.name}: {line}" for line in wrong]
    if anew and not asked.record:
        said.append(f"`ci/compile --record` writes the new results to ci/{record.name}, so that they are kept")
    sys.stdout.write(f"{_table(rows)}\n\n" + "\n".join(said) + "\n")
    if asked.record:
        compile_record.write([(row.job, row.digest, row.measured) for row in rows], record)
    if asked.json:
        listed = [{**row.columns, "faults": row.faults} for row in rows]
        asked.json.write_text(json.dumps({"triton": triton.__version__, "rows": listed}, indent=1) + "\n")
    return 1 if faulty or wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
