"""The jobs of `ci/compile`: every kernel in every configuration that its launcher can choose."""

import itertools
from dataclasses import dataclass

import torch

from optimized.kernels.gated_activation import (
    gated_activation_config,
    gated_activation_gradients_kernel,
    gated_activation_kernel,
)
from optimized.kernels.grouped_lora_linear import grouped_lora_linear_config, grouped_lora_linear_kernel
from optimized.kernels.grouped_weight_grad import grouped_weight_grad_config, grouped_weight_grad_kernel
from optimized.kernels.int8_linear import int8_linear_config
from optimized.kernels.linear_expand import linear_expand_config
from optimized.kernels.lora_expand import lora_expand_config, lora_expand_kernel
from optimized.kernels.lora_shrink import lora_shrink_config, lora_shrink_kernel
from optimized.kernels.packed_dequantize import packed_dequantize_config
from optimized.kernels.packed_linear import packed_linear_config
from optimized.kernels.shrink_and_grad import shrink_and_grad_config, shrink_and_grad_kernel
from optimized.kernels.split_k_reduce import split_k_reduce_config
from optimized.kernels.tiles import Config, mixed_dot, native_dot
from optimized.kernels.weight_grad import weight_grad_config, weight_grad_kernel
from optimized.tuned_kernels import MOST_ONE_READING_RANK
from reference.mlp import ACTIVATIONS

ARCHITECTURES = (80, 90, 100)
KERNELS = {
    "lora_shrink": (lora_shrink_kernel, lora_shrink_config, native_dot),
    "lora_expand": (lora_expand_kernel, lora_expand_config, mixed_dot),
    "weight_grad": (weight_grad_kernel, weight_grad_config, mixed_dot),
    "shrink_and_grad": (shrink_and_grad_kernel, shrink_and_grad_config, mixed_dot),
}
# Kernels over rows that choose their group; the layouts are of packed operands, of weights and factors swapped as for
# dX, of an odd rank, and of strided operands.
GROUPED_KERNELS = {"grouped_lora_linear": grouped_lora_linear_kernel, "grouped_weight_grad": grouped_weight_grad_kernel}
# Elementwise kernels, without a product: one configuration, and one compilation for each activation.
ACTIVATION_KERNELS = {
    "gated_activation": gated_activation_kernel,
    "gated_activation_gradients": gated_activation_gradients_kernel,
}
# Result dtypes for int8 operands; int64 is the bare product. float16 differs from bfloat16 only in the last cast.
RESULTS = (torch.int64, torch.float64, torch.float32, torch.bfloat16)
# Layouts of weight and factor in forward and backward. The tiles need tensor descriptors, which sm_80 lacks.
LINEAR_EXPAND_LAYOUTS = ("forward", "backward", "forward, odd rank", "backward, odd rank")
# Storages of packed weights: one for each way to read a code, and the constants of the kernels.
PACKED = {
    "nf4": {"PAIRED": True, "TABLE": True, "ZERO": False, "GROUP": 64, "ROWS": 1, "FACTOR": 1.0},
    "int8": {"PAIRED": False, "TABLE": False, "ZERO": False, "GROUP": 4096, "ROWS": 1, "FACTOR": 1 / 127},
    "int4": {"PAIRED": False, "TABLE": False, "ZERO": True, "GROUP": 32, "ROWS": 1, "FACTOR": 1.0},
    "fp8": {"PAIRED": False, "TABLE": True, "ZERO": False, "GROUP": 128, "ROWS": 128, "FACTOR": 1.0},
}
PACKED_ROWS = (1, 17, 64)
# The dtype of the operands, and the dtype to which they are rounded; autocast needs the last pair.
DTYPES = (
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16),
    (torch.float32, torch.float32),
    (torch.float32, torch.bfloat16),
)
# One shape on each side of every threshold of the configurations.
SHAPES = tuple(itertools.product((1, 33, 512, 513, 65536), (1, 4096), (1, 17, 33, 128)))
LAYOUTS = ("packed", "swapped", "odd rank", "strided")
UNSWAPPED = ("weight_grad", "shrink_and_grad")  # kernels whose operands never change roles


@dataclass(frozen=True)
class Job:
    """One compilation; if `dropped`, the kernel computes a dropout mask."""

    kernel: str
    arch: int
    dtype: str
    compute: str
    layout: str
    config: Config
    activation: str = ""
    dropped: bool = False


def jobs() -> list[Job]:
    """Every configuration that a launcher can choose, for every architecture, dtype and layout."""
    found = {}
    variants = itertools.product(ARCHITECTURES, DTYPES, LAYOUTS, (False, True))
    for arch, (dtype, compute), layout, dropped in variants:
        if dtype != compute and (layout != "packed" or dropped):
            continue
        for M, features, R in SHAPES:
            wide = dtype.itemsize > compute.itemsize
            configs = {
                name: pick(M, features, R, compute, _is_lean(name, layout, R, wide), dropped)
                for name, (_, pick, _) in KERNELS.items()
                if not (layout == "swapped" and name in UNSWAPPED)
                and not (name == "shrink_and_grad" and (R > MOST_ONE_READING_RANK or compute == torch.float32))
            }
            if dtype == compute and layout in ("packed", "strided") and not dropped:
                configs["split_k_reduce"] = split_k_reduce_config(features, R)
            for name, config in configs.items():
                job = Job(name, arch, named(dtype), named(compute), layout, config, dropped=dropped)
                found[str(job)] = job
    singles = [*_gated_activation_jobs(), *_int8_linear_jobs(), *_linear_expand_jobs()]
    return [*found.values(), *singles, *_packed_jobs(), *_grouped_jobs()]


def _linear_expand_jobs() -> list[Job]:
    """Jobs of the persistent kernel: both passes in bfloat16, each block size, with and without a dropout mask."""
    variants = itertools.product((90, 100), LINEAR_EXPAND_LAYOUTS, (128, 4096), (False, True))
    found = [
        Job(
            "linear_expand",
            arch,
            "bfloat16",
            "bfloat16",
            layout,
            linear_expand_config(65536, N, 4096, dropped),
            dropped=dropped,
        )
        for arch, layout, N, dropped in variants
    ]
    return list({str(job): job for job in found}.values())


def _gated_activation_jobs() -> list[Job]:
    """Jobs of the activation kernels: each activation, gated or not, in each dtype, for every architecture."""
    dtypes = dict.fromkeys(named(dtype) for dtype, _ in DTYPES)
    variants = [f"{name}{gate}" for name in ACTIVATIONS for gate in ("", " gated")]
    return [
        Job(kernel, arch, dtype, dtype, "packed", gated_activation_config(2**20), activation)
        for kernel, arch, dtype, activation in itertools.product(ACTIVATION_KERNELS, ARCHITECTURES, dtypes, variants)
    ]


def _int8_linear_jobs() -> list[Job]:
    """Jobs of the int8 kernel: each configuration and result dtype for every architecture; strided with the widest."""
    found = {}
    layouts = [*((result, "packed") for result in RESULTS), (torch.float64, "strided")]
    for arch, (result, layout), M, K in itertools.product(ARCHITECTURES, layouts, (1, 17, 65536), (1, 4096)):
        config = int8_linear_config(M, 4096, K, layout == "strided")
        job = Job("int8_linear", arch, named(result), "int8", layout, config)
        found[str(job)] = job
    return list(found.values())


def _packed_jobs() -> list[Job]:
    """Jobs of the kernels of packed weights: each storage and pass in bfloat16, nf4 in each dtype and block size."""
    found = []
    for arch, storage in itertools.product(ARCHITECTURES, PACKED):
        every = storage == "nf4"
        for dtype in (torch.bfloat16, torch.float32):
            config = packed_dequantize_config(4096, 4096)
            found.append(Job("packed_dequantize", arch, named(dtype), "float32", storage, config))
        dtypes = (torch.bfloat16, torch.float16, torch.float32) if every else (torch.bfloat16,)
        products = itertools.product(dtypes, PACKED_ROWS if every else PACKED_ROWS[-1:], ("", ", transposed"))
        for dtype, M, direction in products:
            config = packed_linear_config(M, 4096, 4096, dtype)
            found.append(Job("packed_linear", arch, named(dtype), named(dtype), storage + direction, config))
    return list({str(job): job for job in found}.values())


def _grouped_jobs() -> list[Job]:
    """Jobs of the kernels over groups of rows: each tile, rank and layout, in each dtype, for every architecture."""
    found = {}
    dtypes = [dtype for dtype, compute in DTYPES if dtype == compute]
    for arch, dtype, layout, R in itertools.product(ARCHITECTURES, dtypes, LAYOUTS, (16, 32)):
        lean = layout == "strided"
        for M in (16,) if dtype == torch.float32 else (16, 64, 128):
            configs = {"grouped_lora_linear": grouped_lora_linear_config(M, 4096, 4096, R, dtype, lean)}
            if layout != "swapped":
                configs["grouped_weight_grad"] = grouped_weight_grad_config(M, 4096, R, dtype, lean)
            for name, config in configs.items():
                job = Job(name, arch, named(dtype), named(dtype), layout, config)
                found[str(job)] = job
    return list(found.values())


def _is_lean(name: str, layout: str, R: int, wide: bool) -> bool:
    """The launchers' choice of a lean configuration: the large operand decides, above rank 16 the factor as well."""
    large = name != "lora_expand" and (layout == "strided" or wide)
    factor = name not in UNSWAPPED and (layout in ("strided", "odd rank") or wide)
    return large or (R > 16 and factor)


def named(dtype: torch.dtype) -> str:
    """The name of a dtype: `bfloat16` for torch.bfloat16."""
    return str(dtype).removeprefix("torch.")
