"""Compile every kernel in every configuration ahead of time, and judge what came out.

Needs no GPU: the triton wheel carries ptxas. Exit status 1 when a kernel spills, wants more shared memory
than its architecture has, multiplies 16-bit or int8 tiles without a tensor core, or fuses what is to round twice.
"""

import argparse
import concurrent.futures
import contextlib
import io
import itertools
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

from optimized.kernels.down import down_config, down_kernel
from optimized.kernels.integers import NOT_FUSED, integers_config, integers_kernel
from optimized.kernels.joined import joined_config, joined_kernel
from optimized.kernels.lifted import lifted_config, lifted_gradients_kernel, lifted_kernel
from optimized.kernels.outer import outer_config, outer_kernel
from optimized.kernels.partials import partials_config, partials_kernel
from optimized.kernels.sweep import sweep_config, sweep_kernel
from optimized.kernels.tiles import TL_DTYPE, Config, mixed_dot, native_dot
from optimized.kernels.up import up_config, up_kernel
from optimized.routes import MOST_SWEPT_RANK
from reference.mlp import ACTIVATIONS

SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
TENSOR_CORE = {"tcgen05": "tcgen05.mma", "wgmma": "wgmma.mma_async", "mma": "mma.sync"}
KERNELS = {
    "down": (down_kernel, down_config, native_dot),
    "up": (up_kernel, up_config, mixed_dot),
    "outer": (outer_kernel, outer_config, mixed_dot),
    "sweep": (sweep_kernel, sweep_config, mixed_dot),
}
# Element by element: no product, one configuration, and one compilation for each activation.
LIFTED = {"lifted": lifted_kernel, "lifted_gradients": lifted_gradients_kernel}
# What becomes of int8 operands, int64 being the bare product; float16 differs from bfloat16 in one last cast.
RESULTS = (torch.int64, torch.float64, torch.float32, torch.bfloat16)
# Tiles by tensor descriptors, which sm_80 has not; the weight as forward and as backward multiply by it.
JOINED = {"forward": "stride_br", "backward": "stride_bn"}
# The dtype of the operands and the one they are rounded to; the last pair is autocast's.
DTYPES = (
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16),
    (torch.float32, torch.float32),
    (torch.float32, torch.bfloat16),
)
# One shape on each side of every bound that a configuration depends on.
SHAPES = tuple(itertools.product((1, 33, 512, 513, 65536), (1, 4096), (1, 17, 33, 128)))


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
UNSWAPPED = ("outer", "sweep")  # each of their operands has one place in the formula


@dataclass(frozen=True)
class Job:
    """One compilation."""

    kernel: str
    arch: int
    dtype: str
    compute: str
    layout: str
    config: Config
    activation: str = ""


@dataclass(frozen=True)
class Row:
    """What one compilation gave, and what is wrong with it."""

    kernel: str
    arch: str
    dtype: str
    compute: str
    layout: str
    blocks: str
    warps: int
    stages: int
    registers: int
    spill_bytes: int
    shared_bytes: int
    instructions: str
    descriptors: bool
    faults: list[str]


def jobs() -> list[Job]:
    """Every configuration that a launcher can choose, for every architecture, dtype and layout."""
    found = {}
    for arch, (dtype, compute), layout in itertools.product(SHARED_BYTES, DTYPES, UNIT_STRIDES):
        if dtype != compute and layout != "packed":
            continue
        for M, features, R in SHAPES:
            configs = {
                name: pick(M, features, R, compute, _is_lean(name, layout, R, dtype.itemsize > compute.itemsize))
                for name, (_, pick, _) in KERNELS.items()
                if not (layout == "swapped" and name in UNSWAPPED)
                and not (name == "sweep" and (R > MOST_SWEPT_RANK or compute == torch.float32))
            }
            if dtype == compute and layout in ("packed", "strided"):
                configs["partials"] = partials_config(features, R)
            for name, config in configs.items():
                job = Job(name, arch, _name(dtype), _name(compute), layout, config)
                found[str(job)] = job
    return [*found.values(), *_lifted_jobs(), *_integers_jobs(), *_joined_jobs()]


def _joined_jobs() -> list[Job]:
    """The persistent kernel: both passes in bfloat16, and each block size."""
    configs = {N: joined_config(65536, N, 4096) for N in (128, 4096)}
    return [
        Job("joined", arch, dtype, dtype, layout, config)
        for arch, dtype, layout, config in itertools.product((90, 100), ("bfloat16",), JOINED, configs.values())
    ]


def _lifted_jobs() -> list[Job]:
    """The activation kernels: each activation, gated or not, in each dtype, for every architecture."""
    dtypes = dict.fromkeys(_name(dtype) for dtype, _ in DTYPES)
    variants = [f"{name}{gate}" for name in ACTIVATIONS for gate in ("", " gated")]
    return [
        Job(kernel, arch, dtype, dtype, "packed", lifted_config(2**20), activation)
        for kernel, arch, dtype, activation in itertools.product(LIFTED, SHARED_BYTES, dtypes, variants)
    ]


def _integers_jobs() -> list[Job]:
    """The kernel on int8: each configuration and result for every architecture; strided with the widest result."""
    found = {}
    layouts = [*((result, "packed") for result in RESULTS), (torch.float64, "strided")]
    for arch, (result, layout), M, K in itertools.product(SHARED_BYTES, layouts, (1, 17, 65536), (1, 4096)):
        config = integers_config(M, 4096, K, layout == "strided")
        job = Job("integers", arch, _name(result), "int8", layout, config)
        found[str(job)] = job
    return list(found.values())


def _is_lean(name: str, layout: str, R: int, wide: bool) -> bool:
    """What the launchers conclude: the large operand decides, and beyond rank 16 the factor too."""
    large = name != "up" and (layout == "strided" or wide)
    factor = name not in UNSWAPPED and (layout in ("strided", "odd rank") or wide)
    return large or (R > 16 and factor)


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
        constants = {"OPERAND": TL_DTYPE[compute], "HAS_BIAS": True, "K_FIRST": job.layout == "backward", "GROUP_M": 8}
        return joined_kernel, {**constants, **job.config.blocks, "stride_sr": 1, JOINED[job.layout]: 1}
    if job.kernel == "partials":
        kernel, constants = partials_kernel, {"ACC": TL_DTYPE[torch.float32]}
    else:
        kernel, _, dot = KERNELS[job.kernel]
        constants = {**dot(compute), **({"ADDED": job.layout != "strided"} if job.kernel == "up" else {})}
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
    return "fp64" if name == "scale" else "i64" if name.startswith("stride_") else "i32"


def _descriptor(name: str, job: Job) -> str:
    """The type of a tensor descriptor, as `joined` makes it."""
    axes = {"x_desc": "MK", "w_desc": "KN" if job.layout == "backward" else "NK", "y_desc": "MN"}[name]
    sizes = ",".join(str(job.config.blocks[f"BLOCK_{axis}"]) for axis in axes)
    return f"tensordesc<{TL_DTYPE[getattr(torch, job.dtype)]}[{sizes}]>"


def _is_aligned(name: str, job: Job) -> bool:
    """Whether a launch would find this argument to be a multiple of 16."""
    if name.endswith("_OF_SPLIT"):
        return True
    if job.layout == "strided" or (job.layout == "odd rank" and name in UNALIGNED_AT_ODD_RANK):
        return False
    return name.endswith("_ptr") or name in ("N", "K", "R") or name.startswith("stride_")


def _triton_name(dtype: str) -> str:
    return "i64" if dtype == "int64" else str(TL_DTYPE[getattr(torch, dtype)])


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


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
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as cache,
        concurrent.futures.ProcessPoolExecutor(
            len(os.sched_getaffinity(0)), initializer=_prepare, initargs=(cache,)
        ) as pool,
    ):
        rows = list(pool.map(compile_job, jobs(), chunksize=4))
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
