"""The error that a right implementation of any formula may have, sampled: Monte Carlo arithmetic.

A formula whose error budget nobody has derived is run in float64, and run again with a random error in the result of
each operation, in backward too. An error is as large as the dtype in question allows: roundings of each stored element,
and for sums of products a part of the bound `Rounding.accumulation` on the sum of absolute products. The spread of the
results is what such errors do to each element; the budget is a multiple of it.

Source: Parker, Monte Carlo Arithmetic (1997).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from conformance.numerics.budget import Rounding
from conformance.numerics.formats import Array, format_of

SAMPLES = 4  # runs with random errors
SUMMED = 6.0  # a sum's bound ÷ its sampled error
STORES = 2.0  # roundings of each stored element: a right implementation may store it in two dtypes
# The budget ÷ root mean square of the sampled errors. An error of many roundings is nearly normal, and 4 samples
# estimate its size to a third; the row's mean, which 4 · N samples estimate, is the least.
MULTIPLE = 8.0

_ATEN = torch.ops.aten
PRODUCTS = {_ATEN.mm.default, _ATEN.addmm.default, _ATEN.bmm.default, _ATEN.baddbmm.default}
SUMS = {_ATEN.sum.dim_IntList, _ATEN.sum.default, _ATEN.mean.dim, _ATEN.mean.default}
CASTS = {_ATEN._to_copy.default}
COPIES = {_ATEN.clone.default, _ATEN.detach.default, _ATEN.cat.default, _ATEN.stack.default, _ATEN.fill_.Scalar}


class Float64(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A region in which float64 stays float64, where a formula computes a part in float32, and results may have errors.

    Args:
        how: the rounding whose errors results get; None for exact results.   seed: of the errors.
    """

    def __init__(self, how: Rounding | None = None, seed: int = 0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.how, self.generator = how, torch.Generator().manual_seed(seed)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        wide = any(isinstance(a, Tensor) and a.dtype == torch.float64 for a in args)
        if wide and kwargs.get("dtype") in (torch.float32, torch.bfloat16, torch.float16):
            kwargs["dtype"] = torch.float64
        result = func(*args, **kwargs)
        return result if self.how is None else self._changed(func, args, result)

    def _changed(self, func: Any, args: tuple[Any, ...], result: Any) -> Any:
        """The result with its error; a copy, a view and a result of another dtype have none."""
        if isinstance(result, tuple):  # of a norm: the result, its mean and its deviation
            return tuple(
                self._off(part, self._rows(part)) if _is_wide(part) and part.dim() else part for part in result
            )
        if not _is_wide(result) or func in COPIES or not result.numel():
            return result
        if func not in CASTS and any(result._is_view() or _same_storage(result, a) for a in args if _is_float(a)):
            return result
        if func in PRODUCTS:
            absolute = func(*(a.abs() if _is_float(a) else a for a in args))
            return self._off(result, self._sum_of(args[-1].shape[-2]) * absolute)
        if func in SUMS:
            count = max(args[0].numel() // result.numel(), 1)
            return self._off(result, self._sum_of(count) * func(args[0].abs(), *args[1:]))
        return self._off(result, torch.zeros_like(result))

    @property
    def _rounding(self) -> Rounding:
        assert self.how is not None
        return self.how

    def _sum_of(self, k: int) -> float:
        """The relative error of a sum of k products; the multiple makes it the bound that other budgets have."""
        return self._rounding.accumulation(k) / SUMMED

    def _rows(self, part: Tensor) -> Tensor:
        """An error of the sums over the rows of a norm."""
        return self._sum_of(part.shape[-1]) * part.abs().mean(-1, keepdim=True).expand_as(part)

    def _off(self, result: Tensor, summed: Tensor) -> Tensor:
        """A result with the errors of its stores and that of its sums."""
        size = torch.nan_to_num(STORES * self._rounding.unit * result.abs() + summed, posinf=0.0)
        noise = torch.rand(result.shape, generator=self.generator, dtype=torch.float64).to(result.device)
        return result + size * (2 * noise - 1)


def _is_wide(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.float64


def _is_float(argument: Any) -> bool:
    return isinstance(argument, Tensor) and argument.is_floating_point()


def _same_storage(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def allowed_error(exact: Array, samples: Sequence[Array], dtype: torch.dtype) -> Array:
    """The budget of each element of a result, [*, N], from results with sampled errors."""
    squares = np.mean([(sample - exact) ** 2 for sample in samples], axis=0)
    rows = squares.reshape(-1, squares.shape[-1]) if squares.ndim else squares.reshape(1, 1)
    least = np.broadcast_to(rows.mean(-1, keepdims=True), rows.shape).reshape(squares.shape)
    final = 2 * format_of(dtype).unit * np.abs(exact) + format_of(dtype).step
    return np.asarray(MULTIPLE * np.sqrt(np.maximum(squares, least)) + final)
