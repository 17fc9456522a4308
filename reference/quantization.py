"""Quantisation to n-bit integers, and a linear layer that multiplies only integers."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

LEAST_BITS, MOST_BITS = 2, 16


@dataclass(frozen=True)
class Quantized:
    """Integers that stand for real numbers: ``x ≈ scale · (values - zero_point)``, off by at most scale/2.

    Attributes:
        values: [M, K], int64.
        scale: [M, 1] (one for each row) or [1, 1], float64, positive.   zero_point: like scale, int64.
    """

    values: Tensor
    scale: Tensor
    zero_point: Tensor

    def dequantize(self) -> Tensor:
        """``scale · (values - zero_point)``: [M, K], float64."""
        return (self.values - self.zero_point).double() * self.scale


def quantize_dynamic(x: Tensor, n_bits: int) -> Quantized:
    """Quantise x to unsigned integers, each row over its own range.

    ``s = (max - min)/(2ⁿ - 1)``, ``z = round(-min/s)``, ``q = clamp(round(x/s) + z, 0, 2ⁿ - 1)``, rounding half
    to even, in float64 and by true division. A constant row c is exact: (s, z, q) is (1, 0, 0) for
    c = 0, (c, 0, 1) for c > 0, and (|c|, 1, 0) for c < 0.

    Args:
        x: [M, K], any float dtype; M or K may be 0.   n_bits: n, 2 to 16.
    Raises:
        ValueError: for n_bits out of range; if x has NaN or infinite elements, or a range beyond float64.
    """
    x = _checked("x", x, n_bits)
    low, high = (x.amin(1, keepdim=True), x.amax(1, keepdim=True)) if x.shape[1] else (x.new_zeros(len(x), 1),) * 2
    return _quantize(x, low, high, n_bits, lowest=0)


def quantize_static(x: Tensor, low: float, high: float, n_bits: int) -> tuple[Quantized, int]:
    """Quantise x to unsigned integers over one range; also return the number of clamped elements.

    The formula is that of `quantize_dynamic`, with min = low and max = high.

    Args:
        x: [M, K].   low, high: the range from calibration.   n_bits: n, 2 to 16.
    Raises:
        ValueError: as in `quantize_dynamic`.
    """
    x = _checked("x", x, n_bits)
    clamped = int(((x < low) | (x > high)).sum())
    least, most = (torch.full((1, 1), end, dtype=torch.float64, device=x.device) for end in (low, high))
    return _quantize(x.clamp(low, high), least, most, n_bits, lowest=0), clamped


def quantize_weight_columns(weight: Tensor, n_bits: int) -> Quantized:
    """Quantise a weight to signed integers, each output column over its own range; for dynamic inputs.

    ``s = (max - min)/(2ⁿ - 1)``, ``z = round(-2ⁿ⁻¹ - min/s)``, q in [-2ⁿ⁻¹, 2ⁿ⁻¹ - 1]. Constant columns are exact,
    as constant rows are in `quantize_dynamic`.

    Args:
        weight: [N, K]; each row belongs to one output column.   n_bits: n, 2 to 16.
    Raises:
        ValueError: as in `quantize_dynamic`.
    """
    weight = _checked("weight", weight, n_bits)
    if not weight.shape[1]:
        return quantize_dynamic(weight, n_bits)
    low, high = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
    return _quantize(weight, low, high, n_bits, lowest=-(2 ** (n_bits - 1)))


def quantize_weight(weight: Tensor, n_bits: int) -> Quantized:
    """Quantise a weight to signed integers over one range, symmetric about zero; for static inputs.

    ``s = max|w|/(2ⁿ⁻¹ - 1)``, ``z = 0``; a weight of zeros has s = 1.

    Args:
        weight: [N, K].   n_bits: n, 2 to 16.
    Raises:
        ValueError: as in `quantize_dynamic`.
    """
    weight = _checked("weight", weight, n_bits)
    largest = 2 ** (n_bits - 1) - 1
    scale = (weight.abs().amax() if weight.numel() else weight.new_zeros(())) / largest
    scale = torch.where(scale > 0, scale, 1.0).reshape(1, 1)
    return Quantized((weight / scale).round().long(), scale, torch.zeros_like(scale, dtype=torch.int64))


def accumulate(x: Tensor, weight: Tensor) -> Tensor:
    """``q_x · q_wᵀ``, exactly; on the CPU, because GPUs have no product of 64-bit integers.

    Args:
        x: [M, K].   weight: [N, K].   Both int64.
    Returns:
        [M, N], int64.
    """
    return (x.cpu() @ weight.cpu().t()).to(x.device)


class QuantizedLinear:
    """A linear layer compiled to integers: ``y = (raw - [z_w·Σq_x + z_x·Σq_w - z_x·z_w·K])·(s_x·s_w) + b``.

    A server computes only ``raw = q_x · q_wᵀ``. The rest needs the sums, scales and zero points, which stay at the
    client with the bias.

    Args:
        weight: [N, K], float; quantised once, here.   bias: [N] or None.   n_bits: n, of inputs and weight.
        input_range: (low, high) for static quantisation, with one scale for the weight; None for dynamic
            quantisation, with a scale for each row of the inputs and each output column.
    Attributes:
        weight: the integers [N, K], int64; None once cleared at the client.
        weight_scale: [N], float64.   weight_zero_point, weight_sum: [N], int64.   bias: [N], float64, or None.
        n_bits, input_range, in_features, out_features.
        clamped: the number of input elements that static quantisation has clamped.
    Raises:
        ValueError: as in `quantize_dynamic`.
    Source: Concrete ML's GLWE backend; the exact constants are this project's.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, n_bits: int, input_range: tuple[float, float] | None = None
    ) -> None:
        quantize = quantize_weight_columns if input_range is None else quantize_weight
        quantized = quantize(weight.detach(), n_bits)
        self.n_bits, self.input_range, self.clamped = n_bits, input_range, 0
        self.out_features, self.in_features = weight.shape
        self.weight: Tensor | None = quantized.values
        self.weight_sum = quantized.values.sum(1)
        self.weight_scale = quantized.scale[:, 0].expand(self.out_features).clone()
        self.weight_zero_point = quantized.zero_point[:, 0].expand(self.out_features).clone()
        self.bias = None if bias is None else _checked("bias", bias.detach()[None], n_bits)[0].clone()

    def __call__(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """The layer's output [M, N], in dtype, for x [M, K]: quantised, multiplied and recovered.

        Raises:
            ValueError: as in `quantize_dynamic`.   RuntimeError: as in `accumulate`.
        """
        rows = self.quantize(x)
        return self.recover(self.accumulate(rows.values), rows).to(dtype)

    def quantize(self, x: Tensor) -> Quantized:
        """Quantise the input x [M, K], row by row or over the calibrated range."""
        if self.input_range is None:
            return quantize_dynamic(x, self.n_bits)
        quantized, clamped = quantize_static(x, *self.input_range, self.n_bits)
        self.clamped += clamped
        return quantized

    def accumulate(self, x: Tensor) -> Tensor:
        """``q_x · q_wᵀ``: [M, K] → [M, N], int64, exact.

        Raises:
            RuntimeError: if the weight was cleared.
        """
        if self.weight is None:
            raise RuntimeError("the weight was cleared here: only the server can multiply by it")
        return accumulate(x, self.weight)

    def recover(self, raw: Tensor, x: Quantized) -> Tensor:
        """The layer's output [M, N], float64, from the integer products and the quantised input.

        The integers are exact in int64 if they stay below 2⁶². Nearly constant rows and columns far from zero have
        larger zero points; their sums use float64.
        """
        K, levels = self.in_features, 2**self.n_bits
        largest = [
            levels + int(z.abs().amax()) if z.numel() else levels for z in (x.zero_point, self.weight_zero_point)
        ]
        number = torch.int64 if 4 * max(K, 1) * largest[0] * largest[1] < 2**62 else torch.float64
        z_x, z_w = x.zero_point.to(number), self.weight_zero_point.to(number)
        sum_x, sum_w = x.values.sum(1, keepdim=True).to(number), self.weight_sum.to(number)
        products = raw.to(number) - (z_w * sum_x + z_x * sum_w - z_x * z_w * K)
        y = products.double() * (x.scale * self.weight_scale)
        return y if self.bias is None else y + self.bias

    @property
    def largest_accumulator(self) -> int:
        """The largest possible product of n-bit inputs: ``(2ⁿ - 1)·max_j max(Σ_k q_w⁺, Σ_k |q_w⁻|)``.

        Raises:
            RuntimeError: if the weight was cleared.
        """
        if self.weight is None:
            raise RuntimeError("the weight was cleared here: its sums are not known")
        if not self.weight.numel():
            return 0
        sums = torch.stack((self.weight.clamp(min=0).sum(1), -self.weight.clamp(max=0).sum(1)))
        return int(2**self.n_bits - 1) * int(sums.amax())

    def to(self, device: torch.device) -> None:
        """Move all tensors to a device."""
        if self.weight_sum.device == device:
            return
        for name in ("weight", "bias", *_CLIENT):
            tensor = getattr(self, name)
            setattr(self, name, None if tensor is None else tensor.to(device))

    def clear(self) -> None:
        """Delete the weight; the client's part remains."""
        self.weight = None

    def to_arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """The client's part as NumPy arrays, from which `from_arrays` makes the layer again."""
        arrays = {name: getattr(self, name).cpu().numpy() for name in _CLIENT}
        arrays["shape"] = np.array([self.out_features, self.in_features, self.n_bits])
        if self.bias is not None:
            arrays["bias"] = self.bias.cpu().numpy()
        if self.input_range is not None:
            arrays["input_range"] = np.array(self.input_range)
        return arrays

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray[Any, Any]]) -> "QuantizedLinear":
        """A layer without a weight, from the arrays of `to_arrays`.

        Raises:
            KeyError, ValueError: if an array is missing or of another length.
        """
        layer = cls.__new__(cls)
        layer.out_features, layer.in_features, layer.n_bits = map(int, arrays["shape"])
        layer.weight, layer.clamped = None, 0
        for name in (*_CLIENT, *({"bias"} & set(arrays))):
            if arrays[name].shape != (layer.out_features,):
                raise ValueError(f"{name} is {list(arrays[name].shape)}: expected [{layer.out_features}]")
        for name in _CLIENT:
            setattr(layer, name, torch.from_numpy(arrays[name].copy()))
        layer.bias = torch.from_numpy(arrays["bias"].copy()) if "bias" in arrays else None
        low_high = arrays.get("input_range")
        layer.input_range = None if low_high is None else (float(low_high[0]), float(low_high[1]))
        return layer


_CLIENT = ("weight_scale", "weight_zero_point", "weight_sum")


def _checked(name: str, t: Tensor, n_bits: int) -> Tensor:
    if isinstance(n_bits, bool) or not isinstance(n_bits, int) or not LEAST_BITS <= n_bits <= MOST_BITS:
        raise ValueError(f"n_bits = {n_bits!r}: expected an int from {LEAST_BITS} to {MOST_BITS}")
    if t.ndim != 2:
        raise ValueError(f"{name} is {list(t.shape)}: expected two dimensions")
    t = t.double()
    if not_finite := int((~t.isfinite()).sum()):
        raise ValueError(f"{name} has {not_finite} elements of {t.numel()} that are NaN or infinite: expected none")
    return t


def step_and_zero_point(low: Tensor, high: Tensor, n_bits: int, lowest: int) -> tuple[Tensor, Tensor]:
    """The scale and zero point that map [low, high] to about ``[lowest, lowest + 2ⁿ - 1]``; low = high is exact.

    Args:
        low, high: any shape, float64.   n_bits: n.   lowest: 0 for unsigned integers, -2ⁿ⁻¹ for signed ones.
    Returns:
        The scale, and the integer zero point, both float64 in the shape of low.
    Raises:
        ValueError: if a range is beyond float64.
    """
    if not (high - low).isfinite().all():
        raise ValueError("the range of the values is beyond float64: expected max - min to be finite")
    # A step below 2⁻⁵² of the values is lost in float64, and its zero point could overflow int64.
    finest = torch.maximum(low.abs(), high.abs()) * 2.0**-52
    step = torch.maximum((high - low) / (2**n_bits - 1), finest).clamp(min=2.0**-1022)
    constant = low == high
    scale = torch.where(constant, torch.where(low == 0, 1.0, low.abs()), step)
    return scale, torch.where(constant, (low < 0).double(), (lowest - low / scale).round())


def _quantize(t: Tensor, low: Tensor, high: Tensor, n_bits: int, lowest: int) -> Quantized:
    scale, zero_point = step_and_zero_point(low, high, n_bits, lowest)
    values = ((t / scale).round() + zero_point).clamp(lowest, lowest + 2**n_bits - 1)
    return Quantized(values.long(), scale, zero_point.long())
