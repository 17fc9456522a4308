"""Known-bad twins of formats: tables, codes, blocks and scales that are read in another way than they are stored."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from reference.packed.dynamic_map import dynamic_map
from reference.packed.four_bit_tables import FP4, NF4
from tests.baselines.quantised import RightPacked
from tests.known_bad import breaks

SINGLE: dict[str, Any] = {"says": "worst    Ŵ", "dtypes": ("float32",)}


class Decodes(RightPacked):
    """A target that dequantises in its own way."""

    def changed(self, weight, fields):
        """The fields that are decoded instead."""
        return {}

    def decode(self, weight):
        """Ŵ in float32."""
        fields = {**weight.fields, **self.changed(weight, weight.fields)}
        return dataclasses.replace(weight, fields=fields).dequantize(torch.float32)

    @property
    def dequantize_weight(self):
        return lambda module: self.decode(module.packed_weight)


class Tables(Decodes):
    """A target with tables and blocks of its own for 4-bit codes."""

    def table(self, name):
        """The values of the codes."""
        return torch.tensor(NF4 if name == "nf4" else FP4)

    def codes(self, packed):
        """The codes in the order of the elements."""
        return torch.stack([packed >> 4, packed & 15], -1).flatten()

    def block(self, index, size, shape):
        """The block of each element."""
        return index // size

    def absmax(self, weight):
        """The scales of the blocks."""
        ones = torch.ones_like(weight.fields["codes"]) * 17  # two codes 1
        found = dataclasses.replace(weight, fields={**weight.fields, "codes": ones}).dequantize(torch.float32)
        value = torch.tensor(NF4 if weight.format == "nf4" else FP4)[1]
        return weight.fields["absmax"] if "absmax" in weight.fields else found.flatten()[:: self.size(weight)] / value

    def size(self, weight):
        """The size of a block."""
        return weight.options["block_size"]

    def decode(self, weight):
        if weight.format not in ("nf4", "fp4"):
            return super().decode(weight)
        n, k = weight.shape
        index = torch.arange(n * k)
        scales = self.absmax(weight)
        of_block = scales[self.block(index, self.size(weight), weight.shape).clamp(max=len(scales) - 1)]
        q = self.codes(weight.fields["codes"].flatten())[: n * k].int()
        return (self.table(weight.format)[q] * of_block).view(n, k)


@breaks("QNT-FMT-NF4", source="a table printed with four digits", **SINGLE)
class RoundsTheTableToFourDigits(Tables):
    def table(self, name):
        return (super().table(name) * 1e4).round() / 1e4


@breaks(
    "QNT-FMT-NF4",
    "QNT-FMT-FP4",
    says="as if the two codes of a byte were exchanged",
    dtypes=("float32",),
    source="bitsandbytes-foundation/bitsandbytes #1472",
)
class ReadsTheLowBitsFirst(Decodes):
    def changed(self, weight, fields):
        packed = weight.format in ("nf4", "fp4")
        return {"codes": fields["codes"] << 4 | fields["codes"] >> 4} if packed else {}


@breaks("QNT-FMT-NF4", source="blocks that begin at each row", **SINGLE)
class BeginsBlocksAtEachRow(Tables):
    def block(self, index, size, shape):
        return index // shape[1] * -(-shape[1] // size) + index % shape[1] // size


@breaks("QNT-FMT-NF4", source="64 written into a kernel", **SINGLE)
class KnowsOneBlockSize(Tables):
    def size(self, weight):
        return 64


@breaks("QNT-FMT-NF4", source="products in bfloat16", **SINGLE)
class RoundsTheScalesTo16Bits(Decodes):
    def changed(self, weight, fields):
        return {"absmax": fields["absmax"].bfloat16().float()} if "absmax" in fields else {}


@breaks(
    "QNT-FMT-NF4", says="as if the scale had been left out", source="huggingface/transformers #48371: scales dropped"
)
class LeavesTheAbsmaxOut(Decodes):
    def changed(self, weight, fields):
        return {"absmax": torch.ones_like(fields["absmax"])} if weight.format == "nf4" and "absmax" in fields else {}


@breaks("QNT-FMT-FP4", source="codes in the order of their values", **SINGLE)
class SortsTheValuesOfFp4(Tables):
    def table(self, name):
        found = super().table(name)
        return torch.cat([found[:8].sort()[0], -found[:8].sort()[0]]) if name == "fp4" else found


@breaks("QNT-FMT-FP4", source="E2M1 with its own subnormal, 0.0625 in place of 1/192", **SINGLE)
class TakesAnotherSubnormal(Tables):
    def table(self, name):
        found = super().table(name)
        return torch.where(found.abs() == found[1].abs(), found.sign() / 12, found) if name == "fp4" else found


class Nested(Tables):
    """A target that decodes nested scales in its own way."""

    def absmax(self, weight):
        if not weight.options["nested"]:
            return super().absmax(weight)
        fields = weight.fields
        return self.scales(fields["absmax_codes"].int(), fields["absmax2"], fields["offset"])

    def scales(self, codes, absmax2, offset):
        """`D[q]·absmax2 + offset`."""
        return self.map()[codes] * absmax2.repeat_interleave(256)[: len(codes)] + offset

    def map(self):
        """D."""
        return dynamic_map()


@breaks(
    "QNT-FMT-NESTED", says="as if the offset of the scales had been left out", dtypes=("float32",), source="no offset"
)
class LeavesTheOffsetOut(Nested):
    def scales(self, codes, absmax2, offset):
        return super().scales(codes, absmax2, offset * 0)


@breaks("QNT-FMT-NESTED", source="a linear map of 8 bits", **SINGLE)
class TakesALinearMap(Nested):
    def map(self):
        return torch.linspace(-1, 1, 256)


@breaks("QNT-FMT-NESTED", source="one absmax2 for all blocks", **SINGLE)
class ReadsTheFirstAbsmax2(Nested):
    def scales(self, codes, absmax2, offset):
        return self.map()[codes] * absmax2[0] + offset


@breaks("QNT-FMT-NESTED", source="scales of scales added after the cast to float16", **SINGLE)
class AddsTheOffsetIn16Bits(Nested):
    def scales(self, codes, absmax2, offset):
        return super().scales(codes, absmax2, offset).bfloat16().float()


@breaks("QNT-FMT-INT8-BNB", says="worst    Ŵ", dtypes=("float32",), source="absmax/128")
class DividesBy128(Decodes):
    def decode(self, weight):
        return super().decode(weight) * (127 / 128 if weight.format == "int8_bitsandbytes" else 1)


@breaks("QNT-FMT-INT8-BNB", source="a constant of three digits", **SINGLE)
class RoundsTheInverseOf127(Decodes):
    def decode(self, weight):
        of = 127 * 0.00787 if weight.format == "int8_bitsandbytes" else 1
        return super().decode(weight) * of


@breaks(
    "QNT-FMT-INT8-BNB", "QNT-FMT-INT8-TORCHAO", source="a scale for each column where the weight is square", **SINGLE
)
class ScalesColumns(Decodes):
    def decode(self, weight):
        name = {"int8_bitsandbytes": "absmax", "int8_torchao": "scale"}.get(weight.format, "")
        found, (n, k) = super().decode(weight), weight.shape
        if not name:
            return found
        scale = weight.fields[name]
        return found / scale.clamp(min=1e-30)[:, None] * scale[torch.arange(k) % n]


@breaks(
    "QNT-FMT-INT8-TORCHAO", says="constant ratio", dtypes=("float32",), source="s = absmax/127, dequantised with 127"
)
class TakesTheScaleOfAnotherLibrary(Decodes):
    def decode(self, weight):
        return super().decode(weight) * (127.5 / 119 if weight.format == "int8_torchao" else 1)


@breaks("QNT-FMT-FP8", source="a block size guessed from the shapes, which a grid of 2 × 2 does not tell", **SINGLE)
class TransposesTheGrid(Decodes):
    def changed(self, weight, fields):
        scale = fields.get("scale")
        grid = weight.format == "fp8" and scale.shape[0] == scale.shape[1]
        return {"scale": scale.T} if grid else {}


@breaks("QNT-FMT-FP8", source="codes read as e5m2", **SINGLE)
class ReadsCodesAsE5M2(Decodes):
    def decode(self, weight):
        if weight.format != "fp8":
            return super().decode(weight)
        codes = weight.fields["codes"]
        other = codes.view(torch.uint8).view(torch.float8_e5m2).float().nan_to_num()
        return super().decode(weight) / codes.float() * other


@breaks("QNT-FMT-FP8", source="subnormal codes flushed to zero", **SINGLE)
class FlushesSubnormalCodes(Decodes):
    def changed(self, weight, fields):
        if weight.format != "fp8":
            return {}
        codes = fields["codes"].float()
        return {"codes": torch.where(codes.abs() < 2.0**-6, 0.0, codes).to(torch.float8_e4m3fn)}


@breaks("QNT-FMT-INT4", says="as if the zero point were off by one", dtypes=("float32",), source="vLLM #38966")
class MovesTheZeroByOne(Decodes):
    def changed(self, weight, fields):
        return {"zero": fields["zero"] + 1} if "zero" in fields else {}


@breaks("QNT-FMT-INT4", source="codes read as unsigned", **SINGLE)
class ReadsUnsignedCodes(Decodes):
    def changed(self, weight, fields):
        return {"codes": fields["codes"] & 15} if weight.format == "int4" else {}


@breaks("QNT-FMT-INT4", source="scales [K/g, N] in place of [N, K/g]", **SINGLE)
class TransposesTheScales(Decodes):
    def changed(self, weight, fields):
        scale = fields["scale"] if weight.format == "int4" else None
        return {} if scale is None else {"scale": scale.T.contiguous().view(scale.shape)}


@breaks("QNT-FMT-BITS", says="equality required", dtypes=("float32",), source="products in another order")
class RoundsTwice(Decodes):
    def decode(self, weight):
        return super().decode(weight) * 3 / 3
