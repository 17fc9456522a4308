"""Shared parts of the kernels: rounding and multiplication of tiles, configurations, and the launch."""
# mypy: allow-incomplete-defs, allow-untyped-calls

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl

__all__ = [
    "INTERPRETED",
    "TL_DTYPE",
    "Config",
    "accumulator",
    "as_operand",
    "as_stored",
    "block",
    "is_lean",
    "launch",
    "mixed_dot",
    "native_dot",
    "splits_of",
]

INTERPRETED: bool = triton.knobs.runtime.interpret

TL_DTYPE = {
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
    torch.float32: tl.float32,
    torch.float64: tl.float64,
}


@dataclass(frozen=True)
class Config:
    """A configuration of a kernel: block sizes by name, number of warps, and number of pipeline stages."""

    blocks: dict[str, int]
    num_warps: int
    num_stages: int


if INTERPRETED:
    from optimized.kernels.interpreted import as_operand, as_stored
else:

    @triton.jit
    def as_operand(tile, OPERAND: tl.constexpr):
        """The tile rounded to OPERAND, ready for `tl.dot`."""
        return tile.to(OPERAND)

    @triton.jit
    def as_stored(tile, DTYPE: tl.constexpr):
        """The tile rounded to nearest even in DTYPE."""
        return tile.to(DTYPE)


def accumulator(compute: torch.dtype) -> torch.dtype:
    """The dtype of the sums: float32, or float64 for float64."""
    return torch.float64 if compute == torch.float64 else torch.float32


def native_dot(compute: torch.dtype) -> dict[str, Any]:
    """Constants to multiply two tiles that are both rounded to `compute`: exact products, summed in ACC."""
    return {"OPERAND": TL_DTYPE[compute], "PRECISION": "ieee", "ACC": TL_DTYPE[accumulator(compute)]}


def mixed_dot(compute: torch.dtype) -> dict[str, Any]:
    """Constants to multiply a float32 intermediate with a tile that is rounded to `compute`.

    With bfloat16 the intermediate is rounded to bfloat16 too. In float16 (at most 65504) it could overflow, so both
    are multiplied as float32, with three TF32 products that keep 22 bits.
    """
    dot = {"COMPUTE": TL_DTYPE[compute], **native_dot(compute)}
    if compute == torch.float16:
        return {**dot, "OPERAND": tl.float32, "PRECISION": "tf32x3"}
    return dot


def block(size: int, *sizes: int) -> int:
    """The smallest of the ascending `sizes` that is at least `size`, or the largest one."""
    return next((choice for choice in sizes if choice >= size), sizes[-1])


def is_lean(operand: torch.Tensor, compute: torch.dtype) -> bool:
    """Whether this operand needs small tiles: it is loaded element by element, or stored wider than `compute`.

    Tiles are loaded in 16-byte pieces if one axis has unit stride, and the address, the size of that axis and the other
    stride are multiples of 16, as Triton checks at the launch. Other tiles need registers for the address of each
    element.
    """
    sizes, strides = operand.shape, operand.stride()
    vectorised = operand.data_ptr() % 16 == 0 and any(
        strides[axis] == 1 and sizes[axis] % 16 == 0 and strides[1 - axis] % 16 == 0 for axis in (1, 0)
    )
    return not vectorised or operand.element_size() > compute.itemsize


def splits_of(length: int, programs: int, least: int) -> int:
    """The number of splits of a sum, so that `programs` × splits fill a GPU and no split is shorter than `least`.

    256 programs are two waves of the 132 multiprocessors of an H100. The number depends only on shapes, so that the
    order of summation is the same on every device.
    """
    return max(1, min(256 // max(programs, 1), length // least))


def launch(kernel, grid: tuple[int, ...], *args: Any, config: Config, **constants: Any) -> None:
    """Start `kernel` on the device of its first argument, a tensor."""
    with _place(args[0].device):
        kernel[grid](*args, **constants, **config.blocks, num_warps=config.num_warps, num_stages=config.num_stages)


@contextlib.contextmanager
def _place(device: torch.device) -> Iterator[None]:
    """Make the device current; under the interpreter, silence numpy's warnings about inf and NaN."""
    if INTERPRETED:
        with np.errstate(all="ignore"):
            yield
    else:
        with torch.cuda.device(device):
            yield
