"""Right but different layers on a packed base: by tiles, by tables, scales after the product, one fused node."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from reference.linear import drop, widen, without_autocast
from reference.packed.four_bit_tables import FP4, NF4
from reference.packed_product import output_dtype
from reference.packed_weight import PackedWeight
from tests.baselines.quantised import RightLayer, target_of

ROWS = 7  # of a tile, which divides few sizes


class ByTiles(RightLayer):
    """A layer that computes a few rows of Ŵ at a time."""

    def product(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        y = x.new_empty((*x.shape[:-1], self.out_features))
        for at in range(0, self.out_features, ROWS):
            rows = slice(at, at + ROWS)
            y[..., rows] = x @ self.numbers(dtype)[rows].to(x.dtype).T
        return y

    def back(self, g: Tensor, dtype: torch.dtype) -> Tensor:
        dX = g.new_zeros((*g.shape[:-1], self.in_features))
        for at in range(0, self.out_features, ROWS):
            rows = slice(at, at + ROWS)
            dX += g[..., rows] @ self.numbers(dtype)[rows].to(g.dtype)
        return dX


class ByTables(RightLayer):
    """A layer that finds both values of a byte in a table of 256 pairs."""

    def numbers(self, dtype: torch.dtype) -> Tensor:
        weight = self.packed_weight
        if weight.format not in ("nf4", "fp4"):
            return super().numbers(dtype)
        values = torch.tensor(NF4 if weight.format == "nf4" else FP4)
        byte, (n, k) = torch.arange(256), weight.shape
        pairs = torch.stack([values[byte >> 4], values[byte & 15]], -1)
        found = pairs[weight.fields["codes"].flatten().int()].flatten()[: n * k]
        return (found * scales_of(weight).flatten()).view(n, k).to(dtype)


def scales_of(weight: PackedWeight) -> Tensor:
    """The scale of each element [N, K]."""
    if weight.format in ("nf4", "fp4"):  # the first code's value is known: two codes of the largest give the scale
        largest = 0x33 if weight.format == "fp4" else 0xFF
        fields = {**weight.fields, "codes": torch.full_like(weight.fields["codes"], largest)}
    else:
        one = torch.ones_like(weight.fields["codes"].float()).to(weight.fields["codes"].dtype)
        fields = {**weight.fields, "codes": one}
    return dataclasses.replace(weight, fields=fields).dequantize(torch.float32)


class ScalesAfterwards(RightLayer):
    """A layer that multiplies the codes first and each block's sum by its scale then, rounded to the compute dtype."""

    def parts(self) -> tuple[Tensor, Tensor]:
        """The values of the codes and their scales, both [N, K] in float32."""
        scales = scales_of(self.packed_weight)
        values = torch.where(scales > 0, self.packed_weight.dequantize(torch.float32) / scales, 0.0)
        return values, scales

    def product(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        values, scales = self.parts()
        begins = torch.ones_like(scales, dtype=torch.bool)
        begins[:, 1:] = scales[:, 1:] != scales[:, :-1]
        block = begins.cumsum(1) - 1  # of its row
        each = x[..., None, :].float() * values
        sums = each.new_zeros((*each.shape[:-1], int(block.max()) + 1))
        sums = sums.scatter_add(-1, block.expand(each.shape), each)
        first = torch.zeros(sums.shape[-2:]).scatter(1, block, scales)
        return (sums * first.to(dtype).float()).sum(-1).to(x.dtype)

    def back(self, g: Tensor, dtype: torch.dtype) -> Tensor:
        values, scales = self.parts()
        return ((g[..., None].float() * scales.to(dtype).float()) * values).sum(-2).to(g.dtype)


class Fused(torch.autograd.Function):
    """Layer and adapter in one node, which saves x, x Aᵀ and the layer's storage."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, A: Tensor, B: Tensor, layer: Any, dtype: torch.dtype) -> Tensor:
        S = widen(x.to(A.dtype)) @ widen(A).T
        ctx.save_for_backward(x, S, A, B)
        ctx.layer, ctx.dtype = layer, dtype
        y: Tensor = layer.product(widen(x.to(dtype)), dtype)
        bias = 0.0 if layer.bias is None else widen(layer.bias.to(dtype))
        return y + bias + (S @ widen(B).T * layer.scale).to(y.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        (g,), (x, S, A, B), s = gradients, ctx.saved_tensors, ctx.layer.scale
        T = widen(g.to(B.dtype)) @ widen(B) * s
        dX = ctx.layer.back(widen(g.to(ctx.dtype)), ctx.dtype) + (T @ widen(A)).to(g.dtype)
        rows = [t.reshape(-1, t.shape[-1]) for t in (T, widen(x.to(A.dtype)), widen(g.to(B.dtype)), S)]
        dA, dB = rows[0].T @ rows[1], rows[2].T @ rows[3] * s
        return dX.to(x.dtype), dA.to(A.dtype), dB.to(B.dtype), None, None


class InOneNode(RightLayer):
    """A layer whose whole output is one node of the graph."""

    def forward(self, x: Tensor) -> Tensor:
        dropping = self.training and self.dropout_p
        if dropping or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        c = self.computes(x)
        with without_autocast(x):
            y: Tensor = Fused.apply(x, self.lora_A.weight, self.lora_B.weight, self, c)  # type: ignore[no-untyped-call]
        return y.to(output_dtype(x, self.compute_dtype))


class DropsByMultiplying(RightLayer):
    """A layer whose dropout multiplies by a mask of its own."""

    def dropped(self, t: Tensor) -> Tensor:
        return t * drop(torch.ones_like(t), self.dropout_p, self.training)


VARIANTS = {
    "dequantises first": target_of(RightLayer)(),
    "by tiles": target_of(ByTiles)(),
    "by tables": target_of(ByTables)(),
    "scales after the product": target_of(ScalesAfterwards)(),
    "one fused node": target_of(InOneNode)(),
    "drops by multiplying": target_of(DropsByMultiplying)(),
}
