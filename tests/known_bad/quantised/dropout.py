"""Known-bad twins of dropout: another mask in backward, dropout of the base, dropout in eval mode, a lost scale."""

from __future__ import annotations

import torch

from reference.linear import drop
from tests.baselines.quantised import RightLayer
from tests.known_bad.quantised.forward import wrong


class Redrawn(torch.autograd.Function):
    """Dropout whose backward pass draws a mask of its own."""

    @staticmethod
    def forward(ctx, t, p):
        ctx.p = p
        return torch.nn.functional.dropout(t, p)

    @staticmethod
    def backward(ctx, *gradients):
        return torch.nn.functional.dropout(gradients[0], ctx.p), None


@wrong("QNT-DROP-BWD", says="worst    d", source="a mask drawn again in backward")
class DrawsAnotherMaskInBackward(RightLayer):
    def dropped(self, t):
        return Redrawn.apply(t, self.dropout_p) if self.training and self.dropout_p else t


@wrong("QNT-DROP-BWD", says="worst", source="dropout without division by 1-p")
class DoesNotDivideByTheKeptShare(RightLayer):
    def dropped(self, t):
        return drop(t, self.dropout_p, self.training) * (1 - self.dropout_p)


@wrong("QNT-DROP-BASE", says="⟨", dtypes=("float32",), source="dropout of the whole x")
class DropsTheBaseToo(RightLayer):
    def base(self, x):
        return super().base(drop(x, self.dropout_p, self.training))


@wrong("QNT-DROP-BASE", says="worst    y", dtypes=("float32",), source="dropout that ignores the mode")
class DropsInEvalMode(RightLayer):
    def dropped(self, t):
        return drop(t, self.dropout_p, True)
