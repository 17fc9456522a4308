"""Known-bad twins of packing: codes that are not the nearest, scales from another block, zeros that become NaN."""

from __future__ import annotations

import torch

import reference
from tests.baselines.quantised import RightPacked
from tests.known_bad import breaks


class Packs(RightPacked):
    """A target that packs in its own way."""

    def prepared(self, weight):
        """The numbers that are packed instead."""
        return weight

    def packed_linear(self, linear, name, *, compute_dtype=None, **options):
        other = torch.nn.Linear(linear.in_features, linear.out_features, device="meta", dtype=linear.weight.dtype)
        other.weight = torch.nn.Parameter(self.prepared(linear.weight.detach()), requires_grad=False)
        other.bias = linear.bias
        return self.finished(reference.packed_linear(other, name, compute_dtype=compute_dtype, **options))

    def finished(self, base):
        """The base after a change of what it stores."""
        return base


@breaks("QNT-PACK", says="worst    Ŵ beside W", source="codes rounded towards the lower in place of the nearest")
class RoundsCodesDown(Packs):
    def finished(self, base):
        if base.format in ("int8_bitsandbytes", "int8_torchao", "int4"):
            codes = base.weight.detach().view(torch.int8)
            codes.copy_((codes.int() - 1).clamp(min=-128))
        return base


@breaks("QNT-PACK", says="worst    Ŵ beside W", source="absmax of the signed numbers")
class IgnoresNegativeNumbersInAbsmax(Packs):
    def prepared(self, weight):
        return weight.clamp(min=-weight.max().item() / 2)


@breaks("QNT-PACK", says="worst    Ŵ beside W", source="packed from a copy in float8")
class PacksARoundedCopy(Packs):
    def prepared(self, weight):
        return weight.to(torch.float8_e4m3fn).to(weight.dtype)


@breaks("QNT-PACK-BITS", says="equality required", dtypes=("float32",), source="packed from a copy in 16 bits")
class PacksACopyIn16Bits(Packs):
    def prepared(self, weight):
        return weight.bfloat16().to(weight.dtype)
