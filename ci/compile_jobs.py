"""What `ci/compile` compiles: every kernel, in every configuration that its launcher can choose."""

import itertools
from dataclasses import dataclass

import torch

from optimized.kernels.down import down_config, down_kernel
from optimized.kernels.integers import integers_config
from optimized.kernels.joined import joined_config
from optimized.kernels.lifted import lifted_config, lifted_gradients_kernel, lifted_kernel
from optimized.kernels.outer import outer_config, outer_kernel
from optimized.kernels.partials import partials_config
from optimized.kernels.sweep import sweep_config, sweep_kernel
from optimized.kernels.tiles import Config, mixed_dot, native_dot
from optimized.kernels.up import up_config, up_kernel
from optimized.routes import MOST_SWEPT_RANK
from reference.mlp import ACTIVATIONS

ARCHITECTURES = (80, 90, 100)
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
# Tiles by tensor descriptors, which sm_80 has not; weight and factor as forward and as backward multiply by them.
JOINED = ("forward", "backward", "forward, odd rank", "backward, odd rank")
# The dtype of the operands and the one they are rounded to; the last pair is autocast's.
DTYPES = (
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16),
    (torch.float32, torch.float32),
    (torch.float32, torch.bfloat16),
)
# One shape on each side of every bound that a configuration depends on.
SHAPES = tuple(itertools.product((1, 33, 512, 513, 65536), (1, 4096), (1, 17, 33, 128)))
LAYOUTS = ("packed", "swapped", "odd rank", "strided")
UNSWAPPED = ("outer", "sweep")  # each of their operands has one place in the formula


@dataclass(frozen=True)
class Job:
    """One compilation; where `dropped`, of a kernel that computes a mask."""

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
                and not (name == "sweep" and (R > MOST_SWEPT_RANK or compute == torch.float32))
            }
            if dtype == compute and layout in ("packed", "strided") and not dropped:
                configs["partials"] = partials_config(features, R)
            for name, config in configs.items():
                job = Job(name, arch, named(dtype), named(compute), layout, config, dropped=dropped)
                found[str(job)] = job
    return [*found.values(), *_lifted_jobs(), *_integers_jobs(), *_joined_jobs()]


def _joined_jobs() -> list[Job]:
    """The persistent kernel: both passes in bfloat16, each block size, with a mask and without."""
    variants = itertools.product((90, 100), JOINED, (128, 4096), (False, True))
    found = [
        Job("joined", arch, "bfloat16", "bfloat16", layout, joined_config(65536, N, 4096, dropped), dropped=dropped)
        for arch, layout, N, dropped in variants
    ]
    return list({str(job): job for job in found}.values())


def _lifted_jobs() -> list[Job]:
    """The activation kernels: each activation, gated or not, in each dtype, for every architecture."""
    dtypes = dict.fromkeys(named(dtype) for dtype, _ in DTYPES)
    variants = [f"{name}{gate}" for name in ACTIVATIONS for gate in ("", " gated")]
    return [
        Job(kernel, arch, dtype, dtype, "packed", lifted_config(2**20), activation)
        for kernel, arch, dtype, activation in itertools.product(LIFTED, ARCHITECTURES, dtypes, variants)
    ]


def _integers_jobs() -> list[Job]:
    """The kernel on int8: each configuration and result for every architecture; strided with the widest result."""
    found = {}
    layouts = [*((result, "packed") for result in RESULTS), (torch.float64, "strided")]
    for arch, (result, layout), M, K in itertools.product(ARCHITECTURES, layouts, (1, 17, 65536), (1, 4096)):
        config = integers_config(M, 4096, K, layout == "strided")
        job = Job("integers", arch, named(result), "int8", layout, config)
        found[str(job)] = job
    return list(found.values())


def _is_lean(name: str, layout: str, R: int, wide: bool) -> bool:
    """What the launchers conclude: the large operand decides, and beyond rank 16 the factor too."""
    large = name != "up" and (layout == "strided" or wide)
    factor = name not in UNSWAPPED and (layout in ("strided", "odd rank") or wide)
    return large or (R > 16 and factor)


def named(dtype: torch.dtype) -> str:
    """`bfloat16` for torch.bfloat16."""
    return str(dtype).removeprefix("torch.")
