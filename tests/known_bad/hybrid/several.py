"""Known-bad twins of group `hybrid`: what one layer or call leaves for another."""

from __future__ import annotations

import torch
from torch import nn

import reference
from tests.baselines.hybrid import Right
from tests.known_bad import breaks

HYBRID = ("hybrid",)


@breaks("HYB-SEVERAL", says="the backward pass of one of several calls", groups=HYBRID, dtypes=("float32",))
class RemembersTheLastLayer(Right):
    def run_forward(self, ctx, x, there):
        self.last = ctx.back
        return super().run_forward(ctx, x, there)

    def run_backward(self, ctx, g):
        ctx.back = self.last
        return super().run_backward(ctx, g)


@breaks("HYB-SEVERAL", says="the backward pass of one of several calls", groups=HYBRID, dtypes=("float32",))
class RemembersTheLastShape(Right):
    def run_forward(self, ctx, x, there):
        ctx.back.shape = x.shape
        return super().run_forward(ctx, x, there)

    def run_backward(self, ctx, g):
        return super().run_backward(ctx, g).reshape(ctx.back.shape)


@breaks("HYB-NO-GRADIENT", says="made x require grad", groups=HYBRID, dtypes=("float32",))
class MakesTheInputRequireGrad(Right):
    def layer_forward(self, layer, x):
        y = super().layer_forward(layer, x)
        if torch.is_grad_enabled() and x.is_leaf:
            x.requires_grad_(True)
        return y


@breaks("HYB-NO-GRADIENT", says="y requires grad although", groups=HYBRID, dtypes=("float32",))
class AlwaysKeepsAGraph(Right):
    def layer_forward(self, layer, x):
        return super().layer_forward(layer, x if x.requires_grad else x.detach().requires_grad_(True))


@breaks("HYB-NO-GRADIENT", says="y requires grad under no_grad", groups=HYBRID, dtypes=("float32",))
class SwitchesGradModeOn(Right):
    def layer_forward(self, layer, x):
        with torch.enable_grad():
            return super().layer_forward(layer, x)


@breaks("HYB-NAMES-WHOLE", says="leaves out", groups=HYBRID)
class LooksAtTheBeginningOfComponents(Right):
    def is_adapter(self, name, module):
        begins = any(part.startswith(("lora_A", "lora_B")) for part in name.split("."))
        return begins or super().is_adapter(name, module)


@breaks("HYB-NAMES-WHOLE", says="leaves out", groups=HYBRID)
class LooksAtTheEndOfComponents(Right):
    def is_adapter(self, name, module):
        ends = any(part.endswith(("lora_A", "lora_B")) for part in name.split("."))
        return ends or super().is_adapter(name, module)


@breaks("HYB-NAMES-WHOLE", says="leaves out", groups=HYBRID)
class IgnoresTheCase(Right):
    def is_adapter(self, name, module):
        return super().is_adapter(name, module) or not {"lora_a", "lora_b"}.isdisjoint(name.lower().split("."))


@breaks("HYB-NAMES-WHOLE", says="leaves out", groups=HYBRID)
class TakesLeavesWithoutTheUnderscore(Right):
    def is_adapter(self, name, module):
        leaf = next(module.children(), None) is None
        return super().is_adapter(name, module) or (leaf and name.rpartition(".")[2].startswith("lora"))


@breaks("HYB-NAMES-KINDS", says="wrongly has", groups=HYBRID)
class SendsSubclasses(Right):
    def is_linear(self, module):
        own = isinstance(module, nn.Linear) and not isinstance(module, reference.LinearLoRA)
        return own or super().is_linear(module)
