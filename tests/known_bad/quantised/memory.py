"""Known-bad twins of memory: Ŵ kept for backward where autograd, the node, the layer or nobody shows it; scratch."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

import reference
from reference.linear import widen, without_autocast
from tests.baselines.quantised import RightLayer, RightPacked
from tests.known_bad import breaks
from tests.known_bad.quantised.forward import wrong

SAYS: dict[str, Any] = {"says": "half a byte for each element", "dtypes": ("float32",)}


class ComputesItself(RightLayer):
    """A layer whose base product is another function."""

    def of(self, x, numbers):
        """`x Ŵᵀ`."""
        raise NotImplementedError

    def base(self, x):
        c = self.computes(x)
        with without_autocast(x):
            y = self.of(widen(x.to(c)), widen(self.numbers(c)))
            return y if self.bias is None else y + widen(self.bias.to(c))


@wrong("QNT-MEM-SAVED", source="bitsandbytes-foundation/bitsandbytes #1935: Ŵ kept by F.linear", **SAYS)
class KeepsTheWeightOfFLinear(ComputesItself):
    def of(self, x, numbers):
        return F.linear(x, numbers)


class Attribute(torch.autograd.Function):
    """A product that keeps Ŵ as an attribute of its node."""

    @staticmethod
    def forward(ctx, x, numbers):
        ctx.numbers = numbers
        return x @ numbers.T

    @staticmethod
    def backward(ctx, *gradients):
        return gradients[0] @ ctx.numbers, None


class Closure(torch.autograd.Function):
    """A product that keeps Ŵ in a function which its node holds."""

    @staticmethod
    def forward(ctx, x, numbers):
        ctx.back = [lambda g: g @ numbers]
        return x @ numbers.T

    @staticmethod
    def backward(ctx, *gradients):
        return ctx.back[0](gradients[0]), None


@wrong("QNT-MEM-NODE", source="torchao: Ŵ kept as an attribute of ctx", **SAYS)
class KeepsTheWeightInTheNode(ComputesItself):
    def of(self, x, numbers):
        return Attribute.apply(x, numbers)


@wrong("QNT-MEM-NODE", source="Ŵ kept by a closure", **SAYS)
class KeepsTheWeightInAClosure(ComputesItself):
    def of(self, x, numbers):
        return Closure.apply(x, numbers)


@wrong("QNT-MEM-NODE", source="Ŵ of the last call kept by the layer", **SAYS)
class KeepsTheWeightInTheLayer(RightLayer):
    def numbers(self, dtype):
        self.last = super().numbers(dtype)
        return self.last


@wrong("QNT-MEM-NODE", source="16-bit copy of Ŵ kept by the layer", **SAYS)
class KeepsACopyInSixteenBits(RightLayer):
    def numbers(self, dtype):
        self.last = super().numbers(torch.bfloat16)
        return super().numbers(dtype)


CACHE: dict[int, Any] = {}


class Cached(RightPacked):
    """A target with a cache outside its layers."""

    def reset(self) -> None:
        CACHE.clear()


class CachesByIdentity(RightLayer):
    def numbers(self, dtype):
        CACHE[id(self)] = found = super().numbers(dtype)
        return found


@breaks("QNT-MEM-LAYERS", source="a cache of the module that is keyed by layers", **SAYS)
class KeepsTheWeightInACache(Cached):
    kind = CachesByIdentity


class CachesInNumPy(RightLayer):
    def numbers(self, dtype):
        found = super().numbers(dtype)
        CACHE[id(self)] = found.float().numpy().copy()
        return found


@breaks("QNT-MEM-LAYERS", source="a cache of arrays of NumPy", **SAYS)
class KeepsAnArray(Cached):
    kind = CachesInNumPy


@breaks("QNT-MEM-LAYERS", source="the weight from before packing, kept for merging", **SAYS)
class KeepsTheWeightFromBeforePacking(Cached):
    def packed_linear(self, linear, name, *, compute_dtype=None, **options):
        base = reference.packed_linear(linear, name, compute_dtype=compute_dtype, **options)
        CACHE[id(base)] = linear.weight.detach().clone()
        return base


HELD: list[Any] = []


class HoldsScratch(RightLayer):
    def numbers(self, dtype):
        found = super().numbers(dtype)
        HELD.append(found)
        return found


@breaks("QNT-MEM-SCRATCH", says="bytes at one time", dtypes=("float32",), source="scratch that is freed after the pass")
class HoldsScratchUntilTheEnd(RightPacked):
    kind = HoldsScratch

    def reset(self) -> None:
        HELD.clear()

    def patch_linear_module(self, *arguments, **options):
        HELD.clear()
        return super().patch_linear_module(*arguments, **options)


@wrong("QNT-MEM-TILE", says="one Ŵ in float32", dtypes=("float32",), source="a table look-up by 64-bit indices")
class DecodesThroughInt64(RightLayer):
    def numbers(self, dtype):
        found = super().numbers(dtype)
        index = torch.arange(found.numel())
        return found.flatten()[index].view(found.shape)
