"""The compiler's input for each job: the kernel, the types and constants among its arguments, and the options."""

from dataclasses import dataclass
from typing import Any

import torch

from ci.compile_jobs import ACTIVATION_KERNELS, GROUPED_KERNELS, KERNELS, PACKED, Job
from optimized.kernels.int8_linear import NOT_FUSED, int8_linear_kernel
from optimized.kernels.linear_expand import linear_expand_kernel
from optimized.kernels.packed_dequantize import packed_dequantize_kernel
from optimized.kernels.packed_linear import packed_linear_kernel
from optimized.kernels.split_k_reduce import split_k_reduce_kernel
from optimized.kernels.tiles import TL_DTYPE, mixed_dot, native_dot

# The specialisation at launch: the strides that are 1, and the other numbers that are not multiples of 16. A swapped
# factor is a transposed factor, as in g · B and T · A; an odd rank is not a multiple of 16; strided operands have
# neither property.
INNER = ("stride_xk", "stride_gn", "stride_yn", "stride_sr", "stride_pr", "stride_tr", "stride_dr")
UNIT_STRIDES = {
    "packed": (*INNER, "stride_ak", "stride_br", "stride_or"),
    "swapped": (*INNER, "stride_ar", "stride_bn"),
    "odd rank": (*INNER, "stride_ar", "stride_br", "stride_or"),
    "strided": (),
}
GROUPED_UNITS = {
    "packed": ("stride_xk", "stride_wk", "stride_cn", "stride_ak", "stride_br", "stride_gn", "stride_or"),
    "swapped": ("stride_xk", "stride_wn", "stride_ar", "stride_bn", "stride_gn"),
}
FIXED_TYPES = {
    **dict.fromkeys(
        ("s_ptr", "t_ptr", "d_ptr", "partials_ptr", "scales_ptr", "table_ptr", "scale_ptr", "zero_ptr"), "*fp32"
    ),
    **dict.fromkeys(("groups_ptr", "firsts_ptr", "ends_ptr", "ranks_ptr"), "*i32"),
    "order_ptr": "*i64",
}
UNALIGNED_AT_ODD_RANK = ("R", "stride_sm", "stride_ak", "stride_bn", "stride_on", "stride_tm", "stride_dn")


@dataclass(frozen=True)
class Source:
    """One compilation as the compiler sees it.

    Attributes:
        kernel: the `triton.jit` function.   signature: the type of each argument, as Triton writes it.
        constants: the constant arguments.   aligned: positions of the arguments known to be multiples of 16.
        options: options of the compiler.
    """

    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    aligned: tuple[int, ...]
    options: dict[str, Any]


def source_of(job: Job) -> Source:
    """The compiler's input for this job."""
    kernel, constants = _kernel(job)
    options = {"num_warps": job.config.num_warps, "num_stages": job.config.num_stages}
    if job.kernel == "int8_linear":
        options |= NOT_FUSED
    names = kernel.arg_names
    return Source(
        kernel,
        {name: _type(name, job, constants) for name in names},
        constants,
        tuple(i for i, name in enumerate(names) if name not in constants and _is_aligned(name, job)),
        options,
    )


def _kernel(job: Job) -> tuple[Any, dict[str, Any]]:
    """The job's kernel and its constant arguments."""
    compute = getattr(torch, job.compute)
    if job.kernel == "int8_linear":
        scaled = job.dtype != "int64"
        units = {} if job.layout == "strided" else {"stride_xk": 1, "stride_wk": 1, "stride_yn": 1}
        return int8_linear_kernel, {"SCALED": scaled, "BIASED": scaled, **job.config.blocks, **units}
    if job.kernel in ACTIVATION_KERNELS:
        name, _, gate = job.activation.partition(" ")
        constants = {"GATED": bool(gate), "ACTIVATION": name, "ACC": TL_DTYPE[torch.float32]}
        return ACTIVATION_KERNELS[job.kernel], {**constants, **job.config.blocks}
    if job.kernel == "linear_expand":
        backward = job.layout.startswith("backward")
        constants = {"OPERAND": TL_DTYPE[compute], "HAS_BIAS": True, "K_FIRST": backward, "GROUP_M": 8}
        units = {"stride_sr": 1, "stride_bn" if backward else "stride_br": 1}
        return linear_expand_kernel, {**constants, "DROPPED": job.dropped, **job.config.blocks, **units}
    if job.kernel.startswith("packed"):
        return _packed_kernel(job)
    if job.kernel in GROUPED_KERNELS:
        kernel, packed = GROUPED_KERNELS[job.kernel], job.layout != "strided"
        # as experts call them in forward, or swapped for dX; ranks, and a base for rows without a group, are of batches
        flags = {"HAS_BASE": True, "HAS_BIAS": job.layout != "swapped", "RANKED": not packed, "BASE_ALONE": not packed}
        constants = {name: flag for name, flag in flags.items() if name in kernel.arg_names} | mixed_dot(compute)
        inner = GROUPED_UNITS["swapped" if job.layout == "swapped" else "packed"] if packed else ()
        units = {name: 1 for name in inner if name in kernel.arg_names}
        return kernel, {**constants, **job.config.blocks, **units}
    if job.kernel == "split_k_reduce":
        kernel, constants = split_k_reduce_kernel, {"ACC": TL_DTYPE[torch.float32]}
    else:
        kernel, _, dot = KERNELS[job.kernel]
        constants = {
            **dot(compute),
            "DROPPED": job.dropped,
            **({"ADDED": job.layout != "strided"} if job.kernel == "lora_expand" else {}),
        }
    units = {name: 1 for name in UNIT_STRIDES[job.layout] if name in kernel.arg_names}
    return kernel, {**constants, **job.config.blocks, **units}


def _packed_kernel(job: Job) -> tuple[Any, dict[str, Any]]:
    """The kernel of a packed weight and its constant arguments."""
    storage, _, direction = job.layout.partition(", ")
    constants = {**PACKED[storage], **job.config.blocks}
    if job.kernel == "packed_dequantize":
        return packed_dequantize_kernel, constants
    compute = getattr(torch, job.compute)
    constants |= {"TRANSPOSED": bool(direction), "HAS_BIAS": not direction, "ROUNDED": TL_DTYPE[compute]}
    return packed_linear_kernel, {**constants, **native_dot(compute), "stride_xk": 1}


def _type(name: str, job: Job, constants: dict[str, Any]) -> str:
    """The type of one argument, as Triton writes it; intermediates and partial sums are float32."""
    if name in constants:
        return "constexpr"
    if name.endswith("_desc"):
        return _descriptor(name, job)
    if name == "codes_ptr" or name in FIXED_TYPES:
        return _codes(job) if name == "codes_ptr" else FIXED_TYPES[name]
    if job.kernel == "int8_linear" and name.endswith("_ptr"):
        return {"x_ptr": "*i8", "w_ptr": "*i8", "y_ptr": f"*{_triton_name(job.dtype)}"}.get(name, "*fp64")
    if name.endswith("_ptr"):
        return f"*{_triton_name(job.dtype)}"
    return "fp64" if name == "scale" else "i64" if name == "seed" or name.startswith("stride_") else "i32"


def _codes(job: Job) -> str:
    """The type of the codes of a packed weight: bits, or integers where the kernel has no table."""
    return "*u8" if PACKED[job.layout.partition(",")[0]]["TABLE"] else "*i8"


def _descriptor(name: str, job: Job) -> str:
    """The type of a tensor descriptor, as `linear_expand` makes it."""
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
