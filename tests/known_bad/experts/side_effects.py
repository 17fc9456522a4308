"""Known-bad twins of side effects: a call changes its operands, its neighbours, the process, or keeps something."""

from __future__ import annotations

from typing import Any

import torch

from tests.baselines.experts import Call, Right, gradients
from tests.known_bad import breaks
from tests.known_bad.experts.relations import Keeps


@breaks("EXP-MEM-INPUTS", says="indices or offsets were modified", source="transformers clamps a view of the indices")
class ClampsTheIndexInPlace(Right):
    def routed(self, index, experts):
        own = super().routed(index, experts)
        index.clamp_(0, experts - 1)
        return own


@breaks("EXP-MEM-INPUTS", says="g was modified in place", source="an upstream gradient scaled in place")
class ScalesGInPlace(Right):
    def backward_rows(self, c, g):
        found = super().backward_rows(c, g)
        g.mul_(c.scale * 2)
        return found


@breaks("EXP-MEM-MARGINS", says="memory around x was written", source="a tail that is zeroed beyond the last row")
class ZeroesBeyondTheRows(Right):
    def call(self, x, *arguments):
        if x.numel():
            end = x.storage_offset() + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)) + 1
            x.detach().as_strided((4,), (1,), end).zero_()
        return super().call(x, *arguments)


class SavesItsOutput(Call):
    """A call that saves its output for backward."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Any:
        y = Call.forward(ctx, *arguments)
        ctx.save_for_backward(*ctx.to_save, y)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Any) -> Any:
        return gradients(Saved(ctx), g)


class Saved:
    """A context without the saved output."""

    def __init__(self, ctx: Any) -> None:
        self.saved_tensors = ctx.saved_tensors[:-1]
        self.right, self.own, self.scale, self.mask = ctx.right, ctx.own, ctx.scale, ctx.mask


@breaks("EXP-MEM-OUTPUT", says="raised", source="an output that is needed for backward")
class NeedsItsOutput(Right):
    @property
    def node(self):
        return SavesItsOutput


@breaks("EXP-MEM-LATER", says="worst    d", source="a routing that is kept in one workspace for all calls")
class KeepsOneRouting(Keeps):
    def forward_rows(self, c):
        self.kept["own"] = c.own
        return super().forward_rows(c)

    def backward_rows(self, c, g):
        if sum(map(len, self.kept["own"])) == sum(map(len, c.own)) and len(self.kept["own"]) == len(c.own):
            c.own = self.kept["own"]
        return super().backward_rows(c, g)


@breaks("EXP-MEM-REFILL", says="worst", source="a routing that is kept by the address of the indices")
class KeepsTheRoutingOfAnAddress(Keeps):
    def lora_grouped_linear(self, x, expert_index, *arguments, **options):
        self.at = expert_index.data_ptr()
        return super().lora_grouped_linear(x, expert_index, *arguments, **options)

    def routed(self, index, experts):
        return self.kept.setdefault((self.at, len(index), experts), super().routed(index, experts))


@breaks("EXP-DET", says="differs between two identical runs", source="sums in the order in which threads finish")
class AddsInRandomOrder(Keeps):
    def d_A(self, g, x, p):
        self.kept["calls"] = self.kept.get("calls", 0) + 1
        found = super().d_A(g, x, p)
        return found * (1 + torch.finfo(found.dtype).eps * (self.kept["calls"] % 3))

    def d_B(self, g, x, p):
        self.kept["more"] = self.kept.get("more", 0) + 1
        found = super().d_B(g, x, p)
        return found * (1 + torch.finfo(found.dtype).eps * (self.kept["more"] // 5))


@breaks("EXP-SIDE", says="random state", source="a seed that is set for the masks")
class SeedsTorch(Right):
    def call(self, *arguments):
        torch.manual_seed(0)
        return super().call(*arguments)
