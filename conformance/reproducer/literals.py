"""Literals: the values of tensors and arrays as short code, exact in their dtype."""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass
from functools import cached_property

import torch

WIDTH = 116
MOST = 2048  # elements; a tensor with more has no literal
FEW = 64  # elements; a tensor with more may be drawn anew from a seed


class Unsayable(Exception):  # noqa: N818  (the name says what cannot be done)
    """An object that a script cannot name or make."""


@dataclass(frozen=True)
class Leaf:
    """A tensor that the case gives: its values when it was first seen, and its place in memory."""

    values: torch.Tensor
    stride: tuple[int, ...]
    requires_grad: bool

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Leaf:
        """The leaf of a tensor."""
        return cls(tensor.detach().clone(), tuple(tensor.stride()), tensor.requires_grad)

    @cached_property
    def literal(self) -> str:
        """The code that makes the tensor.

        Raises:
            Unsayable: if the tensor has too many elements.
        """
        return tensor_literal(self.values)

    @property
    def seeded(self) -> str:
        """The code that draws other values, where the tensor has many: a short literal stays as it is."""
        if self.values.numel() <= FEW or not self.values.is_floating_point():
            return self.literal
        generator = "generator=torch.Generator().manual_seed(1)"
        return f"torch.randn({tuple(self.values.shape)}, {generator}, dtype={self.values.dtype})"

    def equals(self, other: Leaf) -> bool:
        """Whether another leaf holds the same in the same way."""
        same = (self.values.dtype, self.stride, self.requires_grad) == (
            other.values.dtype,
            other.stride,
            other.requires_grad,
        )
        return same and self.values.shape == other.values.shape and torch.equal(self.values, other.values)


def tensor_literal(values: torch.Tensor, indent: str = "", *, as_double: bool = False) -> str:
    """The code that makes a tensor with these values.

    Args:
        indent: the indent of the lines after the first.   as_double: write `torch.float64` as the dtype.
    Raises:
        Unsayable: if there are too many elements.
    """
    if values.numel() > MOST:
        raise Unsayable(f"a tensor of {values.numel()} elements")
    dtype = torch.float64 if as_double else values.dtype
    same = values.flatten()
    if values.numel() > 3 and bool((same == same[0]).all()):
        return f"torch.full({tuple(values.shape)}, {number(same[0])}, dtype={dtype})"
    numbers = _nested(values.detach().cpu())
    shaped = "" if values.numel() else f".reshape({tuple(values.shape)})"
    text = f"torch.tensor({numbers}, dtype={dtype}){shaped}"
    lines = textwrap.wrap(text, WIDTH - len(indent), break_long_words=False, break_on_hyphens=False)
    return f"\n{indent}    ".join(lines)


def _nested(values: torch.Tensor) -> str:
    if values.dim() == 0:
        return number(values)
    return "[" + ", ".join(_nested(part) for part in values) + "]"


def number(value: torch.Tensor) -> str:
    """The shortest decimal that gives the element in its dtype."""
    exact = value.item()
    if isinstance(exact, bool | int):
        return repr(exact)
    if not math.isfinite(exact):
        return f'float("{exact}")'
    if exact == int(exact) and abs(exact) < 1e6:
        return "-0.0" if exact == 0 and math.copysign(1, exact) < 0 else str(int(exact))
    for digits in range(1, 17):
        text = f"{exact:.{digits}g}"
        if torch.tensor(float(text), dtype=torch.float64).to(value.dtype).item() == exact:
            return text.replace("e-0", "e-").replace("e+0", "e")
    return repr(exact)
