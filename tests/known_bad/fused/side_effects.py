"""Known-bad twins of side effects: a fused block changes its operands, keeps memory, or is not deterministic."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from tests.baselines.fused import Right
from tests.known_bad import breaks
from tests.known_bad.linear_and_layer.kept_output import KeepsOutput

GENERATOR = torch.Generator().manual_seed(1)  # torch.manual_seed does not reset it


@breaks("FUS-MEM-INPUTS", says="x was modified in place", source="unslothai/unsloth (AL1)")
class WritesDXOverX(Right):
    def back_qkv(self, x, projections, gs):
        dx, pairs = super().back_qkv(x, projections, gs)
        x.data.copy_(dx)
        return dx, pairs


@breaks("FUS-MEM-INPUTS", says="g of", source="g scaled in place")
class ScalesGInPlace(Right):
    def d_B(self, g, x, p):
        g.data.mul_(p.scale)
        return g.to(p.A.dtype).T @ self.middle(x, p)


@breaks("FUS-MEM-MARGINS", says="memory around x was written", source="an unmasked store")
class WritesBeyondX(Right):
    def call(self, activation, x, named):
        end = x.storage_offset() + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)) + 1
        x.data.as_strided((1,), (1,), end).fill_(0)
        return super().call(activation, x, named)


class Joined(torch.autograd.Function):
    """Concatenate the outputs into one tensor and save it for backward."""

    @staticmethod
    def forward(ctx: Any, *ys: Tensor) -> Tensor:
        ctx.widths = [y.shape[-1] for y in ys]
        joined = torch.cat(ys, -1)
        ctx.save_for_backward(joined)
        return joined

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        (joined,) = ctx.saved_tensors
        return (g + 0 * joined).split(ctx.widths, -1)


@breaks("FUS-MEM-OUTPUT", says="modif", source="q, k and v as views of one product")
class ReturnsPartsOfOneTensor(Right):
    def lora_qkv(self, x, q, k, v):
        ys = super().lora_qkv(x, q, k, v)
        return Joined.apply(*ys).split([y.shape[-1] for y in ys], -1)


@breaks("FUS-MEM-OUTPUT", says="modif", source="the output saved for backward")
class SavesItsOutput(Right):
    def lora_mlp(self, *args, **options):
        return KeepsOutput.apply(super().lora_mlp(*args, **options))


@breaks("FUS-MEM-LATER", says="elements wrong", source="a workspace shared by all calls")
class KeepsOneWorkspace(Right):
    def kept(self, x, outputs):
        old = getattr(self, "workspace", None)
        if old is None or old.shape != x.shape or old.dtype != x.dtype:
            self.workspace = x.clone()
        else:
            old.data.copy_(x)
        return (self.workspace, *outputs)


@breaks("FUS-DET", says="differs between two identical runs", source="atomic accumulation")
class SumsInRandomOrder(Right):
    def reset(self):
        GENERATOR.manual_seed(1)

    def d_A(self, g, x, p):
        return super().d_A(g, x, p) * (1 + 2.0**-7 * float(torch.rand((), generator=GENERATOR)))


@breaks("FUS-SIDE", says="random", source="a seed drawn although dropout is off")
class DrawsARandomNumber(Right):
    def base(self, x, p):
        torch.rand(())
        return super().base(x, p)


@breaks("FUS-MEM-REFILL", says="worst", source="stacked adapters cached by address")
class KeepsStackedAdapters(Right):
    def reset(self):
        self.known = {}

    def project(self, x, p):
        if not hasattr(self, "known"):
            self.reset()
        if p.A is not None:
            key = (p.A.data_ptr(), p.A.shape, p.A.stride(), p.A.dtype, p.B.data_ptr())
            # keeping the sources alive prevents reuse of their addresses
            p, kept = copy.copy(p), self.known.setdefault(key, (p.A, p.B, p.A.detach().clone()))
            p.A = kept[2]
        return super().project(x, p)


@breaks("FUS-MEM-REFILL", says="worst", source="packed weights cached by address")
class KeepsPackedWeights(Right):
    def reset(self):
        self.known = {}

    def base(self, x, p):
        if not hasattr(self, "known"):
            self.reset()
        key = (p.weight.data_ptr(), p.weight.shape, p.weight.stride(), p.weight.dtype)
        return nn.functional.linear(x, self.known.setdefault(key, (p.weight, p.weight.detach().clone()))[1], p.bias)


@breaks("FUS-MEM-REFILL", says="worst", phrase="caches packed weights by the adapters", source="a key without W")
class KeepsPackedWeightsByAdapters(Right):
    def base(self, x, p):
        if p.A is None:
            return super().base(x, p)
        key = p.A._version, p.B._version
        if getattr(p.weight, "packed", (None,))[0] != key:
            p.weight.packed = key, p.weight.detach().clone()
        return nn.functional.linear(x, p.weight.packed[1], p.bias)


@breaks("FUS-MEM-REFILL", says="worst", phrase="caches lora_B by lora_A", source="a key of the first adapter matrix")
class KeepsBByA(Right):
    def project(self, x, p):
        if p.A is not None:
            if getattr(p.A, "beside", (None,))[0] != p.A._version:
                p.A.beside = p.A._version, p.B.detach().clone()
            p = copy.copy(p)
            p.B = p.A.beside[1]
        return super().project(x, p)
