"""A linear layer on integers, with the fastest exact product."""

from functools import cached_property

import torch
from torch import Tensor

import reference
from optimized.dispatch.integers import why_not_float32, why_not_int8, why_not_kernel
from reference.quantization import Quantized, quantize_dynamic, step_and_zero_point
from reference.torch_internals import int8_product

ELEMENTS_AT_ONCE = 2**15 - 1
"""Elements in a block of rows. The intermediate results of a block stay in the cache, and PyTorch does not split such
small work between threads, which on a busy machine wait for each other longer than they compute."""


class QuantizedLinear(reference.QuantizedLinear):
    """`reference.QuantizedLinear` with integer products in int8, float32 or float64.

    The product is the first exact one of int8 (by a Triton kernel, see `why_not_kernel`, or by PyTorch, see
    `why_not_int8`), float32 (see `why_not_float32`) and float64. Each keeps its own copy of the weight after its first
    use.
    """

    def __call__(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """As in the reference, by one kernel (see `why_not_kernel`), or in blocks of rows around one int8 product."""
        if self.weight is None or 0 in (*x.shape, self.out_features):
            return super().__call__(x, dtype)
        if why_not_kernel(self, x) is None:
            rows = self.quantize(x)
            if self._is_beyond_float64(rows.zero_point):
                return self.recover(self.accumulate(rows.values), rows).to(dtype)
            centred, low = rows.values - self._half, rows.zero_point - self._half
            terms = centred.sum(1, keepdim=True) - low * self.in_features, low, rows.scale
            return self._by_kernel(centred, terms, self._scaled_columns, dtype)
        if self.input_range is not None or x.device.type != "cpu" or why_not_int8(self, x) is not None:
            return super().__call__(x, dtype)
        scale, zero_point = self._steps(x)
        if self._is_beyond_float64(zero_point):
            return super().__call__(x, dtype)
        return self._in_blocks(x, scale, zero_point - self._half, dtype)

    def quantize(self, x: Tensor) -> Quantized:
        """As in the reference, with few passes over x."""
        if self.input_range is not None or x.ndim != 2 or not x.numel():
            return super().quantize(x)
        scale, zero_point = self._steps(x)
        return Quantized(self._integers(x, scale, zero_point, lowest=0).long(), scale, zero_point.long())

    def accumulate(self, x: Tensor) -> Tensor:
        """As in the reference."""
        if self.weight is None or 0 in (*x.shape, self.out_features):
            return super().accumulate(x)
        if why_not_kernel(self, x) is None:
            low = x.new_full((1, 1), -self._half)
            return self._by_kernel(x - self._half, (torch.zeros_like(low), low), self._columns, torch.int64)
        if why_not_int8(self, x) is None:
            return self._by_int8(x)
        if why_not_float32(self) is None:
            return (x.float() @ self._weight_float32).long()
        return (x.double() @ self._weight_float64).long()

    def recover(self, raw: Tensor, x: Quantized) -> Tensor:
        """As in the reference; below 2⁵³ the correction is exact in float64, as one product of rank 2."""
        if 0 in raw.shape or self._is_beyond_float64(x.zero_point):
            return super().recover(raw, x)
        rest = x.values.sum(1, keepdim=True) - x.zero_point * self.in_features
        terms = torch.cat((rest, x.zero_point.expand_as(rest)), 1).double()
        return self._corrected(raw.double(), terms, x.scale)

    def to(self, device: torch.device) -> None:
        """As in the reference."""
        if self.weight_sum.device != device:
            self._forget_copies()
        super().to(device)

    def clear(self) -> None:
        """As in the reference; all copies of the weight are deleted too."""
        super().clear()
        self._forget_copies()

    def _steps(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The scale and the zero point of each row, float64 [M, 1]."""
        # aminmax would take nine times as long
        low, high = x.amin(1, keepdim=True).double(), x.amax(1, keepdim=True).double()
        try:
            return step_and_zero_point(low, high, self.n_bits, lowest=0)
        except ValueError:
            quantize_dynamic(x, self.n_bits)  # its error names the fault of x
            raise

    def _integers(self, x: Tensor, scale: Tensor, zero_point: Tensor, lowest: int) -> Tensor:
        """The quantised values, in float64."""
        return torch.div(x, scale).round_().add_(zero_point).clamp_(lowest, lowest + 2**self.n_bits - 1)

    @torch.no_grad()
    def _in_blocks(self, x: Tensor, scale: Tensor, low: Tensor, dtype: torch.dtype) -> Tensor:
        """y from ``q_x - 2ⁿ⁻¹``, whose zero points are `low`: one product for all rows, the other steps in blocks."""
        at_once = max(1, ELEMENTS_AT_ONCE // max(self.in_features, self.out_features))
        centred, terms = torch.empty_like(x, dtype=torch.int8), torch.cat((low * -self.in_features, low), 1)
        before = [torch.split(t, at_once) for t in (x, scale, low, centred, terms[:, :1])]
        for x_rows, scales, lows, integers, rests in zip(*before, strict=True):
            values = self._integers(x_rows, scales, lows, -self._half)
            rests.add_(values.sum(1, keepdim=True))
            integers.copy_(values)
        raw, y = int8_product(centred, self._weight_int8), x.new_empty(len(x), self.out_features, dtype=dtype)
        after = [torch.split(t, at_once) for t in (raw, terms, scale, y)]
        for sums, both_terms, scales, y_rows in zip(*after, strict=True):
            y_rows.copy_(self._corrected(sums.double(), both_terms, scales))
        return y

    def _by_kernel(self, x: Tensor, terms: tuple[Tensor, ...], columns: Tensor, dtype: torch.dtype) -> Tensor:
        """`kernels.int8_linear` of the centred x, padded like the weight; terms are [M, 1] or [1, 1]."""
        from optimized import kernels

        weight = self._weight_int8.t()[: self.out_features]
        padded = torch.nn.functional.pad(x.to(torch.int8), (0, weight.shape[1] - self.in_features))
        rows = torch.stack([term.double().expand(len(x), 1)[:, 0] for term in terms])
        y = torch.empty(len(x), self.out_features, dtype=dtype, device=x.device)
        kernels.int8_linear(padded, weight, rows, columns, y)
        return y

    def _corrected(self, raw: Tensor, terms: Tensor, scale: Tensor) -> Tensor:
        """``(raw - [z_w·(Σq_x - z_x·K) + z_x·Σq_w])·(s_x·s_w) + b``, in place in raw, in float64."""
        y = raw.addmm_(terms, self._columns, alpha=-1).mul_(scale * self.weight_scale)
        return y if self.bias is None else y.add_(self.bias)

    def _is_beyond_float64(self, zero_point: Tensor) -> bool:
        """Whether an integer of the correction could reach 2⁵³."""
        return 4 * self.in_features * self._largest(zero_point) * self._largest_weight >= 2**53

    @cached_property
    def _columns(self) -> Tensor:
        return torch.stack((self.weight_zero_point.double(), self.weight_sum.double()))

    @cached_property
    def _scaled_columns(self) -> Tensor:
        rest = (self.weight_scale,) if self.bias is None else (self.weight_scale, self.bias)
        return torch.cat((self._columns, torch.stack(rest)))

    @property
    def _half(self) -> int:
        return int(2 ** (self.n_bits - 1))

    @cached_property
    def largest_product(self) -> int:
        """`largest_accumulator`, computed once."""
        return self.largest_accumulator

    @cached_property
    def _weight_int8(self) -> Tensor:
        assert self.weight is not None
        weight = self.weight.to(torch.int8)
        if weight.is_cuda:  # its product needs multiples of 8, and a kernel reads 16 at once
            weight = torch.nn.functional.pad(weight, (0, -self.in_features % 16, 0, -self.out_features % 8))
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
        """``q_x · q_wᵀ = (q_x - 2ⁿ⁻¹) · q_wᵀ + 2ⁿ⁻¹·Σq_w``; the subtraction makes the unsigned q_x fit int8."""
        centred = (x - self._half).to(torch.int8)
        if centred.is_cuda:
            rows = max(17 - len(x), 0)
            centred = torch.nn.functional.pad(centred, (0, -self.in_features % 16, 0, rows))
        raw = int8_product(centred, self._weight_int8)[: len(x), : self.out_features]
        return raw.long().add_(self.weight_sum * self._half)

    def _forget_copies(self) -> None:
        for name in ("_weight_int8", "_weight_float32", "_weight_float64", "_columns", "_scaled_columns"):
            vars(self).pop(name, None)
