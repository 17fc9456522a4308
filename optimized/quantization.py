"""A linear layer in integers, through the fastest product that is exact."""

from functools import cached_property

import torch
from torch import Tensor

import reference
from optimized.dispatch.integers import why_not_float32, why_not_int8, why_not_kernel
from reference.quantization import Quantized, quantize_dynamic, step_and_zero_point

ELEMENTS_AT_ONCE = 2**15 - 1
"""Of a block of rows: its intermediate results stay in the cache, and PyTorch does not split work that small among
threads, which on a busy machine wait for each other longer than they compute."""


class QuantizedLinear(reference.QuantizedLinear):
    """`reference.QuantizedLinear` with its integers multiplied as int8, float32 or float64, whichever is exact.

    The first that is of int8 (by a Triton kernel, see `why_not_kernel`, or by PyTorch, see `why_not_int8`),
    float32 (see `why_not_float32`) and float64; every one keeps its own copy of the weight from the first product on.
    """

    def __call__(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """As the reference's; by one kernel (see `why_not_kernel`), or block by block, but for one int8 product."""
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
        """As the reference's, in a few passes over x."""
        if self.input_range is not None or x.ndim != 2 or not x.numel():
            return super().quantize(x)
        scale, zero_point = self._steps(x)
        return Quantized(self._integers(x, scale, zero_point, lowest=0).long(), scale, zero_point.long())

    def accumulate(self, x: Tensor) -> Tensor:
        """As the reference's."""
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
        """As the reference's; below 2⁵³ the correction is exact in float64, and one product of rank 2."""
        if 0 in raw.shape or self._is_beyond_float64(x.zero_point):
            return super().recover(raw, x)
        rest = x.values.sum(1, keepdim=True) - x.zero_point * self.in_features
        terms = torch.cat((rest, x.zero_point.expand_as(rest)), 1).double()
        return self._corrected(raw.double(), terms, x.scale)

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
        # not aminmax, which takes nine times as long
        low, high = x.amin(1, keepdim=True).double(), x.amax(1, keepdim=True).double()
        try:
            return step_and_zero_point(low, high, self.n_bits, lowest=0)
        except ValueError:
            quantize_dynamic(x, self.n_bits)  # which says what is wrong with x
            raise

    def _integers(self, x: Tensor, scale: Tensor, zero_point: Tensor, lowest: int) -> Tensor:
        """The quantised values, in float64."""
        return torch.div(x, scale).round_().add_(zero_point).clamp_(lowest, lowest + 2**self.n_bits - 1)

    @torch.no_grad()
    def _in_blocks(self, x: Tensor, scale: Tensor, low: Tensor, dtype: torch.dtype) -> Tensor:
        """y, with ``q_x - 2ⁿ⁻¹`` for q_x, whose zero points are `low`; one product of all rows, the rest by blocks."""
        at_once = max(1, ELEMENTS_AT_ONCE // max(self.in_features, self.out_features))
        centred, terms = torch.empty_like(x, dtype=torch.int8), torch.cat((low * -self.in_features, low), 1)
        before = [torch.split(t, at_once) for t in (x, scale, low, centred, terms[:, :1])]
        for x_rows, scales, lows, integers, rests in zip(*before, strict=True):
            values = self._integers(x_rows, scales, lows, -self._half)
            rests.add_(values.sum(1, keepdim=True))
            integers.copy_(values)
        raw, y = torch._int_mm(centred, self._weight_int8), x.new_empty(len(x), self.out_features, dtype=dtype)
        after = [torch.split(t, at_once) for t in (raw, terms, scale, y)]
        for sums, both_terms, scales, y_rows in zip(*after, strict=True):
            y_rows.copy_(self._corrected(sums.double(), both_terms, scales))
        return y

    def _by_kernel(self, x: Tensor, terms: tuple[Tensor, ...], columns: Tensor, dtype: torch.dtype) -> Tensor:
        """`kernels.int8_linear` of the centred x, padded as the weight is: in a dtype, from terms [M, 1] or [1, 1]."""
        from optimized import kernels

        weight = self._weight_int8.t()[: self.out_features]
        padded = torch.nn.functional.pad(x.to(torch.int8), (0, weight.shape[1] - self.in_features))
        rows = torch.stack([term.double().expand(len(x), 1)[:, 0] for term in terms])
        y = torch.empty(len(x), self.out_features, dtype=dtype, device=x.device)
        kernels.int8_linear(padded, weight, rows, columns, y)
        return y

    def _corrected(self, raw: Tensor, terms: Tensor, scale: Tensor) -> Tensor:
        """``(raw - [z_w·(Σq_x - z_x·K) + z_x·Σq_w])·(s_x·s_w) + b``, into raw, in float64."""
        y = raw.addmm_(terms, self._columns, alpha=-1).mul_(scale * self.weight_scale)
        return y if self.bias is None else y.add_(self.bias)

    def _is_beyond_float64(self, zero_point: Tensor) -> bool:
        """Whether an integer of the correction might not be below 2⁵³."""
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
        """`largest_accumulator`, found once."""
        return self.largest_accumulator

    @cached_property
    def _weight_int8(self) -> Tensor:
        assert self.weight is not None
        weight = self.weight.to(torch.int8)
        if weight.is_cuda:  # whose product takes multiples of 8 alone; a kernel reads 16 at once
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
        """``q_x · q_wᵀ = (q_x - 2ⁿ⁻¹) · q_wᵀ + 2ⁿ⁻¹·Σq_w``: so the unsigned q_x is signed."""
        centred = (x - self._half).to(torch.int8)
        if centred.is_cuda:
            rows = max(17 - len(x), 0)
            centred = torch.nn.functional.pad(centred, (0, -self.in_features % 16, 0, rows))
        raw = torch._int_mm(centred, self._weight_int8)[: len(x), : self.out_features]
        return raw.long().add_(self.weight_sum * self._half)

    def _forget_copies(self) -> None:
        for name in ("_weight_int8", "_weight_float32", "_weight_float64", "_columns", "_scaled_columns"):
            vars(self).pop(name, None)
