"""A linear layer in integers, through the fastest product that is exact."""

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

import reference
from reference.quantization import (
    Quantized,
    accumulate,
    quantize_dynamic,
    quantize_static,
    quantize_weight,
    quantize_weight_columns,
    step_and_zero_point,
)

ELEMENTS_AT_ONCE = 2**15 - 1
"""Of a block of rows: its intermediate results stay in the cache, and PyTorch does not split work that small among
threads, which on a busy machine wait for each other longer than they compute."""

__all__ = [
    "Quantized",
    "QuantizedLinear",
    "accumulate",
    "quantize_dynamic",
    "quantize_static",
    "quantize_weight",
    "quantize_weight_columns",
    "why_not_float32",
    "why_not_int8",
]


class QuantizedLinear(reference.QuantizedLinear):
    """`reference.QuantizedLinear` with its integers multiplied as int8, float32 or float64, whichever is exact.

    The first of int8 (see `why_not_int8`), float32 (see `why_not_float32`) and float64 that is; every one keeps
    its own copy of the weight from the first product on.
    """

    def __call__(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """As the reference's; block by block, but for one int8 product of all rows."""
        why_not = self.input_range is not None or x.device.type != "cpu" or why_not_int8(self, x) is not None
        if why_not or self.weight is None or 0 in (*x.shape, self.out_features):
            return super().__call__(x, dtype)
        scale, zero_point = self._steps(x)
        if 4 * self.in_features * self._largest(zero_point) * self._largest_weight >= 2**53:
            return super().__call__(x, dtype)
        at_once = max(1, ELEMENTS_AT_ONCE // max(self.in_features, self.out_features))
        blocks = [slice(at, at + at_once) for at in range(0, len(x), at_once)]
        centred, sums = torch.empty_like(x, dtype=torch.int8), torch.empty_like(scale)
        for rows in blocks:
            values = self._integers(x[rows], scale[rows], zero_point[rows])
            sums[rows] = values.sum(1, keepdim=True)
            centred[rows] = values.sub_(self._half)
        raw, y = torch._int_mm(centred, self._weight_int8), x.new_empty(len(x), self.out_features, dtype=dtype)
        for rows in blocks:
            parts = sums[rows], zero_point[rows], scale[rows]
            y[rows] = self._corrected(raw[rows].double(), *parts, sum_missing=self._half)
        return y

    def quantize(self, x: Tensor) -> Quantized:
        """As the reference's, in a few passes over x."""
        if self.input_range is not None or x.ndim != 2 or not x.numel():
            return super().quantize(x)
        scale, zero_point = self._steps(x)
        return Quantized(self._integers(x, scale, zero_point).long(), scale, zero_point.long())

    def accumulate(self, x: Tensor) -> Tensor:
        """As the reference's."""
        if self.weight is None or 0 in (*x.shape, self.out_features):
            return super().accumulate(x)
        if why_not_int8(self, x) is None:
            return self._by_int8(x)
        if why_not_float32(self) is None:
            return (x.float() @ self._weight_float32).long()
        return (x.double() @ self._weight_float64).long()

    def recover(self, raw: Tensor, x: Quantized) -> Tensor:
        """As the reference's; below 2⁵³ the correction is exact in float64, and one product of rank 2."""
        if 0 in raw.shape or 4 * self.in_features * self._largest(x.zero_point) * self._largest_weight >= 2**53:
            return super().recover(raw, x)
        sum_x, zero_point = x.values.sum(1, keepdim=True).double(), x.zero_point.double()
        return self._corrected(raw.double(), sum_x, zero_point, x.scale)

    def to(self, device: torch.device) -> None:
        """As the reference's."""
        if self.weight_sum.device != device:
            self._forget_copies()
        super().to(device)

    def clear(self) -> None:
        """As the reference's; no copy stays."""
        super().clear()
        self._forget_copies()

    def _steps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The scale and the zero point of each row, float64 [M, 1]."""
        low, high = (end.double() for end in torch.aminmax(x, dim=1, keepdim=True))
        if not (low.isfinite().all() and high.isfinite().all()):
            quantize_dynamic(x, self.n_bits)  # which says what is wrong
        return step_and_zero_point(low, high, self.n_bits, lowest=0)

    def _integers(self, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        """The quantised values, in float64."""
        return torch.div(x, scale).round_().add_(zero_point).clamp_(0, 2**self.n_bits - 1)

    def _corrected(self, raw: Tensor, sum_x: Tensor, zero_point: Tensor, scale: Tensor, sum_missing: int = 0) -> Tensor:
        """``(raw + missing·Σq_w - [z_w·Σq_x + z_x·Σq_w - z_x·z_w·K])·(s_x·s_w) + b``, into raw, all in float64."""
        zero_point = zero_point.expand(len(raw), 1)
        rows = torch.cat((sum_x - zero_point * self.in_features, zero_point - sum_missing), 1)
        y = raw.addmm_(rows, self._columns, alpha=-1).mul_(scale * self.weight_scale)
        return y if self.bias is None else y.add_(self.bias)

    @cached_property
    def _columns(self) -> Tensor:
        return torch.stack((self.weight_zero_point.double(), self.weight_sum.double()))

    @property
    def _half(self) -> int:
        return int(2 ** (self.n_bits - 1))

    @cached_property
    def _largest_product(self) -> int:
        return self.largest_accumulator

    @cached_property
    def _weight_int8(self) -> Tensor:
        assert self.weight is not None
        weight = self.weight.to(torch.int8)
        if weight.is_cuda:  # whose product takes multiples of 8 alone
            weight = torch.nn.functional.pad(weight, (0, -self.in_features % 8, 0, -self.out_features % 8))
        return weight.t()

    @cached_property
    def _weight_float32(self) -> Tensor:
        assert self.weight is not None
        return self.weight.t().float()

    @cached_property
    def _weight_float64(self) -> Tensor:
        assert self.weight is not None
        return self.weight.t().double()

    @cached_property
    def _largest_weight(self) -> int:
        return self._largest(self.weight_zero_point)

    def _largest(self, zero_point: Tensor) -> int:
        return int(2**self.n_bits) + (int(zero_point.abs().amax()) if zero_point.numel() else 0)

    def _by_int8(self, x: Tensor) -> Tensor:
        """``q_x · q_wᵀ = (q_x - 2ⁿ⁻¹) · q_wᵀ + 2ⁿ⁻¹·Σq_w``: so the unsigned q_x is signed."""
        centred = (x - self._half).to(torch.int8)
        if centred.is_cuda:
            rows = max(17 - len(x), 0)
            centred = torch.nn.functional.pad(centred, (0, -self.in_features % 8, 0, rows))
        raw = torch._int_mm(centred, self._weight_int8)[: len(x), : self.out_features]
        return raw.long().add_(self.weight_sum * self._half)

    def _forget_copies(self) -> None:
        for name in ("_weight_int8", "_weight_float32", "_weight_float64", "_columns"):
            vars(self).pop(name, None)


def why_not_int8(layer: reference.QuantizedLinear, x: Tensor) -> str | None:
    """Why int8 products with int32 sums would not be exact, or not fast; None if they are both.

    Args:
        layer: the layer.   x: [M, K], its quantised input.
    """
    if layer.n_bits > 8:
        return f"{layer.n_bits} bits do not fit int8"
    if layer.in_features >= 2**17:
        return f"sums over {layer.in_features} features may leave int32"
    if x.device.type == "cuda":
        return None
    if layer.in_features == 1:
        return "torch's int8 product on the CPU reads a transposed weight of one feature wrongly"
    # Without VNNI the CPU adds pairs of products in saturating int16.
    if x.device.type != "cpu" or not _has_vnni():
        return f"this {x.device.type} has no int8 dot product with int32 sums"
    return None


def why_not_float32(layer: reference.QuantizedLinear) -> str | None:
    """Why float32 products would not be exact; None if every partial sum, in any order, is an integer below 2²⁴.

    Args:
        layer: the layer, with its weight.
    """
    largest: int = layer._largest_product if isinstance(layer, QuantizedLinear) else layer.largest_accumulator
    if largest >= 2**24:
        return f"sums of up to {largest} do not fit the 24 bits of float32"
    if torch.get_float32_matmul_precision() != "highest":
        return f"float32 products are set to {torch.get_float32_matmul_precision()!r} precision"
    return None


def _has_vnni() -> bool:
    capabilities: Any = getattr(torch.cpu, "get_capabilities", dict)
    return bool(capabilities().get("avx512_vnni"))
