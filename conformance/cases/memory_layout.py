"""Operands in memory: views with chosen strides inside larger buffers, with canary values in the margins."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from conformance.numerics.formats import Array

LAYOUTS = ("packed", "offset", "padded", "strided", "transposed", "expanded")
MARGIN = 64  # elements before and after the tensor: more than any vector width, so that overruns hit them


@dataclass(frozen=True)
class Placed:
    """A tensor, the buffer behind the view, and the initial content of the buffer."""

    tensor: torch.Tensor
    buffer: torch.Tensor
    before: torch.Tensor

    def margins_changed(self) -> bool:
        """Whether an element of the buffer outside the tensor has changed."""
        now, before = self._bits(self.buffer), self._bits(self.before)
        outside = torch.ones(len(now), dtype=torch.bool)
        if self.tensor.numel():
            positions = torch.arange(len(now)).as_strided(*_geometry(self.tensor))
            outside[positions.reshape(-1)] = False
        return not torch.equal(now[outside], before[outside])

    def contents_changed(self) -> bool:
        """Whether an element of the tensor has changed."""
        size, stride, offset = _geometry(self.tensor)
        now, before = (self._bits(b).as_strided(size, stride, offset) for b in (self.buffer, self.before))
        return not torch.equal(now, before)

    @staticmethod
    def _bits(buffer: torch.Tensor) -> torch.Tensor:
        # integers, so that a NaN equals itself and -0 differs from 0
        kind = {8: torch.int64, 4: torch.int32, 2: torch.int16}[buffer.element_size()]
        return buffer.detach().view(kind).cpu()


def _geometry(tensor: torch.Tensor) -> tuple[torch.Size, tuple[int, ...], int]:
    return tensor.size(), tensor.stride(), int(tensor.storage_offset())


def place(values: Array, dtype: torch.dtype, layout: str, device: str = "cpu") -> Placed:
    """Place values in memory with the given layout, with canary values all around.

    The canary is NaN, but the largest power of two for 16-bit dtypes on a CPU: there, torch's own matmul (oneDNN
    3.12, odd K) reads one element past a row and multiplies it by zero, which must not give NaN.

    Args:
        values: any shape; for `expanded`, all slices along the first axis must be equal.
        layout: `packed`; `offset` (starts at an odd element); `padded` (gaps between rows); `strided` (every
            second element of a row); `transposed` (last two axes swapped in memory); `expanded` (first axis
            has stride 0).
    """
    shape = values.shape
    strides = _strides(shape, layout)
    offset = MARGIN + (1 if layout == "offset" else 0)
    extent = sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + 1 if math.prod(shape) else 0
    sixteen_bit_on_cpu = device == "cpu" and dtype.itemsize == 2
    canary = 2.0 ** (math.frexp(torch.finfo(dtype).max)[1] - 1) if sixteen_bit_on_cpu else math.nan
    buffer = torch.full((offset + extent + MARGIN,), canary, dtype=dtype)
    view = buffer.as_strided(shape, strides, offset)
    if layout == "expanded" and shape:
        view[:1].copy_(torch.from_numpy(values[:1].copy()))
    else:
        view.copy_(torch.from_numpy(values.copy()))
    buffer = buffer.to(device)
    return Placed(buffer.as_strided(shape, strides, offset), buffer, buffer.clone())


def _strides(shape: tuple[int, ...], layout: str) -> tuple[int, ...]:
    order = list(range(len(shape)))
    if layout == "transposed" and len(shape) > 1:
        order[-1], order[-2] = order[-2], order[-1]
    step = 2 if layout == "strided" or (layout == "transposed" and len(shape) == 1) else 1
    strides = [0] * len(shape)
    for place_in_order, axis in enumerate(reversed(order)):
        strides[axis] = step
        step *= max(shape[axis], 1)
        if layout == "padded" and place_in_order == 0:
            step += 3
    if layout == "expanded" and shape:
        strides[0] = 0
    return tuple(strides)
