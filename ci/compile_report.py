"""Compile every kernel in every configuration ahead of time, and judge what came out.

Needs no GPU: the triton wheel carries ptxas. Exit status 1 when a kernel spills, wants more shared memory
than its architecture has, multiplies 16-bit or int8 tiles without a tensor core, or fuses what is to round twice.
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
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ci.compile_jobs import KERNELS, LIFTED, Job, jobs
from optimized.kernels.integers import NOT_FUSED, integers_kernel
from optimized.kernels.joined import joined_kernel
from optimized.kernels.partials import partials_kernel
from optimized.kernels.tiles import TL_DTYPE

SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
TENSOR_CORE = {"tcgen05": "tcgen05.mma", "wgmma": "wgmma.mma_async", "mma": "mma.sync"}


# What a launch finds out: which strides are 1, and which other numbers are no multiples of 16. A swapped
# factor is a transposed one, as in g · B and T · A; an odd rank is no multiple of 16; nothing is known of
# strided operands.
INNER = ("stride_xk", "stride_gn", "stride_yn", "stride_sr", "stride_pr", "stride_tr", "stride_dr")
UNIT_STRIDES = {
    "packed": (*INNER, "stride_ak", "stride_br", "stride_or"),
    "swapped": (*INNER, "stride_ar", "stride_bn"),
    "odd rank": (*INNER, "stride_ar", "stride_br", "stride_or"),
    "strided": (),
}
UNALIGNED_AT_ODD_RANK = ("R", "stride_sm", "stride_ak", "stride_bn", "stride_on", "stride_tm", "stride_dn")


@dataclass(frozen=True)
class Row:
    """What one compilation gave, and what is wrong with it."""

    kernel: str
    arch: str
    dtype: str
    compute: str
    layout: str
    dropped: bool
    blocks: str
    warps: int
    stages: int
    registers: int
    spill_bytes: int
    shared_bytes: int
    instructions: str
    descriptors: bool
    faults: list[str]


def compile_job(job: Job) -> Row:
    """Compile one job and read its cubin."""
    kernel, constants = _kernel(job)
    signature = {name: _type(name, job, constants) for name in kernel.arg_names}
    aligned = [i for i, name in enumerate(kernel.arg_names) if name not in constants and _is_aligned(name, job)]
    attributes = {(i,): [["tt.divisibility", 16]] for i in aligned}
    source = ASTSource(kernel, signature=signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": job.config.num_warps, "num_stages": job.config.num_stages}
    if job.kernel == "integers":
        options |= NOT_FUSED
    with contextlib.redirect_stdout(io.StringIO()) as log:
        compiled = triton.compile(source, target=GPUTarget("cuda", job.arch, 32), options=options)
    registers = re.search(r"Used (\d+) registers", log.getvalue())
    spills = re.findall(r"(\d+) bytes spill", log.getvalue())
    if registers is None or not spills:
        raise RuntimeError(f"ptxas reported no registers or spills for {job}: {log.getvalue()!r}")
    kinds = [kind for kind, mnemonic in TENSOR_CORE.items() if mnemonic in compiled.asm["ptx"]]
    row = Row(
        kernel=job.kernel,
        arch=f"sm_{job.arch}",
        dtype=job.dtype,
        compute=job.compute,
        layout=job.activation or job.layout,
        dropped=job.dropped,
        blocks="x".join(f"{name.removeprefix('BLOCK')[-1:]}{size}" for name, size in job.config.blocks.items()),
        warps=job.config.num_warps,
        stages=job.config.num_stages,
        registers=int(registers[1]),
        spill_bytes=sum(map(int, spills)),
        shared_bytes=compiled.metadata.shared,
        instructions="+".join(kinds) or "fma",
        descriptors="cp.async.bulk.tensor" in compiled.asm["ptx"],
        faults=[],
    )
    row.faults.extend(_faults(row, job.arch, fused="fma.rn.f64" in compiled.asm["ptx"]))
    return row


def _faults(row: Row, arch: int, *, fused: bool) -> list[str]:
    faults = []
    if row.spill_bytes:
        faults.append(f"spills {row.spill_bytes} bytes")
    if row.shared_bytes > SHARED_BYTES[arch]:
        faults.append(f"wants {row.shared_bytes} bytes of shared memory, {row.arch} has {SHARED_BYTES[arch]}")
    if row.kernel == "joined" and not row.descriptors:
        faults.append("moves no tile by a tensor descriptor")
    if row.kernel in (*KERNELS, "integers", "joined") and row.compute != "float32" and row.instructions == "fma":
        faults.append(f"multiplies {row.compute} tiles without a tensor core")
    if row.kernel == "integers" and fused:
        faults.append("fuses multiplications with additions, which rounds once where PyTorch rounds twice")
    return faults


def _kernel(job: Job) -> tuple[Any, dict[str, Any]]:
    """The job's kernel and the arguments that are constant in it."""
    compute = getattr(torch, job.compute)
    if job.kernel == "integers":
        scaled = job.dtype != "int64"
        units = {} if job.layout == "strided" else {"stride_xk": 1, "stride_wk": 1, "stride_yn": 1}
        return integers_kernel, {"SCALED": scaled, "BIASED": scaled, **job.config.blocks, **units}
    if job.kernel in LIFTED:
        name, _, gate = job.activation.partition(" ")
        constants = {"GATED": bool(gate), "ACTIVATION": name, "ACC": TL_DTYPE[torch.float32]}
        return LIFTED[job.kernel], {**constants, **job.config.blocks}
    if job.kernel == "joined":
        backward = job.layout.startswith("backward")
        constants = {"OPERAND": TL_DTYPE[compute], "HAS_BIAS": True, "K_FIRST": backward, "GROUP_M": 8}
        units = {"stride_sr": 1, "stride_bn" if backward else "stride_br": 1}
        return joined_kernel, {**constants, "DROPPED": job.dropped, **job.config.blocks, **units}
    if job.kernel == "partials":
        kernel, constants = partials_kernel, {"ACC": TL_DTYPE[torch.float32]}
    else:
        kernel, _, dot = KERNELS[job.kernel]
        constants = {
            **dot(compute),
            "DROPPED": job.dropped,
            **({"ADDED": job.layout != "strided"} if job.kernel == "up" else {}),
        }
    units = {name: 1 for name in UNIT_STRIDES[job.layout] if name in kernel.arg_names}
    return kernel, {**constants, **job.config.blocks, **units}


def _type(name: str, job: Job, constants: dict[str, Any]) -> str:
    """The type of one argument, as Triton writes it; intermediates and partial sums are float32."""
    if name in constants:
        return "constexpr"
    if name.endswith("_desc"):
        return _descriptor(name, job)
    if name in ("s_ptr", "t_ptr", "d_ptr", "partials_ptr"):
        return "*fp32"
    if job.kernel == "integers" and name.endswith("_ptr"):
        return {"x_ptr": "*i8", "w_ptr": "*i8", "y_ptr": f"*{_triton_name(job.dtype)}"}.get(name, "*fp64")
    if name.endswith("_ptr"):
        return f"*{_triton_name(job.dtype)}"
    return "fp64" if name == "scale" else "i64" if name == "seed" or name.startswith("stride_") else "i32"


def _descriptor(name: str, job: Job) -> str:
    """The type of a tensor descriptor, as `joined` makes it."""
    axes = {"x_desc": "MK", "w_desc": "KN" if job.layout.startswith("backward") else "NK", "y_desc": "MN"}[name]
    sizes = ",".join(str(job.config.blocks[f"BLOCK_{axis}"]) for axis in axes)
    return f"tensordesc<{TL_DTYPE[getattr(torch, job.dtype)]}[{sizes}]>"


def _is_aligned(name: str, job: Job) -> bool:
    """Whether a launch would find this argument to be a multiple of 16."""
    if name.endswith("_OF_SPLIT"):
        return True
    if job.layout == "strided" or (job.layout.endswith("odd rank") and name in UNALIGNED_AT_ODD_RANK):
        return False
    return name.endswith("_ptr") or name in ("N", "K", "R") or name.startswith("stride_")


def _triton_name(dtype: str) -> str:
    return "i64" if dtype == "int64" else str(TL_DTYPE[getattr(torch, dtype)])


def _table(rows: list[Row]) -> str:
    """The rows in columns, each with its faults at the end."""
    heads = [field.name for field in fields(Row) if field.name != "faults"]
    cells = [heads, *([str(getattr(row, head)) for head in heads] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
    faults = ["", *("; ".join(row.faults) for row in rows)]
    return "\n".join(f"{line}  {fault}".rstrip() for line, fault in zip(lines, faults, strict=True))


def _prepare(cache: str) -> None:
    """Have triton show what ptxas says, which it does only when it compiles: a cache of our own, empty."""
    triton.knobs.cache.dir = cache
    triton.knobs.nvidia.dump_ptxas_log = True


def main() -> int:
    """Compile, print the table, write the JSON if asked to; 1 when anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="where to write the rows")
    parser.add_argument("--every-layout", action="store_true", help="kernels with a mask in every layout too")
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as cache,
        concurrent.futures.ProcessPoolExecutor(
            len(os.sched_getaffinity(0)), initializer=_prepare, initargs=(cache,)
        ) as pool,
    ):
        rows = list(pool.map(compile_job, jobs(arguments.every_layout), chunksize=4))
    faulty = [row for row in rows if row.faults]
    sys.stdout.write(
        f"{_table(rows)}\n\n{len(rows)} compilations with triton {triton.__version__}, {len(faulty)} faulty\n"
    )
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"triton": triton.__version__, "rows": [asdict(row) for row in rows]}, indent=1) + "\n"
        )
    return 1 if faulty else 0


if __name__ == "__main__":
    sys.exit(main())
