"""Known-bad twins of forward: another weight than the stored one, a lost term, a product that overflows, strides."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
import torch.nn.functional as F

import reference
from tests.baselines.quantised import RightLayer, RightPacked, target_of
from tests.known_bad import breaks


def wrong(*clauses: str, **options) -> Callable[[type], type]:
    """A decorator that registers a target, whose layers are of a class, as a twin of each of these clauses."""

    def register(kind: type[RightLayer]) -> type[RightLayer]:
        breaks(*clauses, **options)(target_of(kind))
        return kind

    return register


class ReadsStorage(RightLayer):
    """A layer that reads its fields in its own way."""

    def read(self, name, field):
        """A field as the layer reads it."""
        return field

    def numbers(self, dtype):
        weight = self.packed_weight
        fields = {name: self.read(name, field) for name, field in weight.fields.items()}
        return dataclasses.replace(weight, fields=fields).dequantize(dtype)


@wrong("QNT-FWD", says="worst    y", source="bitsandbytes-foundation/bitsandbytes #1472: nibbles swapped")
class SwapsTheNibbles(ReadsStorage):
    def read(self, name, field):
        return field << 4 | field >> 4 if field.dtype == torch.uint8 and name == "codes" else field


@wrong("QNT-FWD", says="worst    y", source="huggingface/transformers #48371: scales dropped")
class DropsTheScales(ReadsStorage):
    def read(self, name, field):
        return torch.ones_like(field) if name in ("scale", "absmax") else field


@wrong("QNT-FWD", says="worst    y", source="blocks numbered from 1")
class TakesTheScaleOfTheBlockBefore(ReadsStorage):
    def read(self, name, field):
        return field.flatten().roll(1).view(field.shape) if name in ("scale", "absmax", "absmax_codes") else field


@wrong("QNT-FWD", says="F.linear raised", source="NVIDIA-NeMo/Automodel: a packed weight given to F.linear")
class GivesThePackedWeightToFLinear(RightLayer):
    def product(self, x, dtype):
        try:
            return F.linear(x, self.weight.to(x.dtype))
        except RuntimeError as error:
            raise RuntimeError(f"F.linear raised {error}") from error


@wrong("QNT-FWD", says="worst    y", source="torchao Int8DynamicActivation: another function, not declared")
class RoundsTheActivations(RightLayer):
    def product(self, x, dtype):
        step = x.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127
        return super().product((x / step).round() * step, dtype)


@wrong("QNT-FWD", says="as if the bias term were missing", source="a bias that a kernel does not add")
class LosesTheBias(RightLayer):
    def base(self, x):
        bias, self.bias = self.bias, None
        try:
            return super().base(x)
        finally:
            self.bias = bias


class Unpadded(ReadsStorage):
    """A layer that takes the blocks of each row apart."""

    def numbers(self, dtype):
        weight = self.packed_weight
        found = weight.dequantize(dtype)
        if weight.format not in ("nf4", "fp4") or weight.options["nested"]:
            return found
        block, (n, k) = weight.options["block_size"], weight.shape
        of_row = -(-k // block)
        absmax = weight.fields["absmax"]
        ones = dataclasses.replace(weight, fields={**weight.fields, "absmax": torch.ones_like(absmax)})
        index = torch.arange(n)[:, None] * of_row + torch.arange(k) // block
        return ones.dequantize(dtype) * absmax[index.clamp(max=len(absmax) - 1)]


@wrong("QNT-FWD", says="worst    y", dtypes=("float32",), source="a kernel whose blocks begin at each row")
class BeginsBlocksAtEachRow(Unpadded):
    pass


class WrongBase(reference.PackedLinear):
    """A packed base whose forward pass has a defect."""


class OtherBase(RightPacked):
    """A target whose bases are of another class."""

    base: type[reference.PackedLinear] = WrongBase

    def packed_linear(self, linear, name, *, compute_dtype=None, **options):
        made = reference.packed_linear(linear, name, compute_dtype=compute_dtype, **options)
        made.__class__ = self.base
        return made


class Detached(reference.PackedLinear):
    def forward(self, x):
        return super().forward(x.detach()) + 0 * x.sum()


class WithoutBias(reference.PackedLinear):
    def forward(self, x):
        return super().forward(x) if self.training or self.bias is None else super().forward(x) - self.bias.to(x.dtype)


@breaks("QNT-FWD-BASE", says="zeros", source="torchao Int8DynamicActivation: a product without a graph")
class HasABaseWithoutGradient(OtherBase):
    base = Detached


@breaks("QNT-FWD-BASE", says="as if the bias term were missing", source="a path for inference of its own")
class LosesTheBiasOfTheBaseInEval(OtherBase):
    base = WithoutBias


@wrong("QNT-FWD-LAYOUT", says="worst", source="a kernel that takes no strides")
class IgnoresTheStrides(RightLayer):
    def product(self, x, dtype):
        contiguous = torch.empty(x.shape).stride()
        if x.stride() == contiguous or x.untyped_storage().nbytes() < 4 * (x.storage_offset() + x.numel()):
            return super().product(x, dtype)
        return super().product(x.as_strided(x.shape, contiguous), dtype)

    def computes(self, x):
        return torch.float32 if x.dtype == torch.float32 else super().computes(x)


@wrong("QNT-FWD-LAYOUT", says="raised", source="a grid of no programs")
class RefusesEmptyBatches(RightLayer):
    def product(self, x, dtype):
        if not x.numel():
            raise RuntimeError("invalid configuration: a grid of no programs")
        return super().product(x, dtype)


@wrong("QNT-FWD-LAYOUT", says="has shape", source="leading dimensions that are flattened and not restored")
class FlattensLeadingDimensions(RightLayer):
    def forward(self, x):
        return super().forward(x).flatten(0, -2) if x.ndim > 3 else super().forward(x)


@wrong("QNT-FWD-OVERFLOW", says="that are not finite", dtypes=("float16",), source="a scale after a product in float16")
class ScalesAfterAProductInFloat16(ReadsStorage):
    def read(self, name, field):
        return torch.ones_like(field) if name in ("scale", "absmax") else field

    def product(self, x, dtype):
        whole = super().product(x, dtype)
        if self.format not in ("int8_bitsandbytes", "int8_torchao"):
            return x @ self.packed_weight.dequantize(dtype).to(x.dtype).T
        scale = self.packed_weight.fields["scale" if self.format == "int8_torchao" else "absmax"]
        return whole.to(dtype).to(x.dtype) * scale


@wrong("QNT-FWD-NONFINITE", says="has finite elements", source="a guard against overflow that hides NaN")
class ReplacesNaN(RightLayer):
    def forward(self, x):
        return super().forward(x.nan_to_num())


@wrong("QNT-FWD-NONFINITE", says="rows beside", source="one scale of activations for a batch")
class SpreadsNonfiniteNumbers(RightLayer):
    def product(self, x, dtype):
        return super().product(x, dtype) + 0 * x.sum()
