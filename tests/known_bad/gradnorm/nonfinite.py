"""Known-bad twins of nonfinite: a norm that is not finite raises in the wrong cases."""

from __future__ import annotations

import torch

from tests.baselines.gradnorm import Right
from tests.known_bad import breaks


@breaks("GRN-NONFINITE-RAISE", says="returned")
class IgnoresErrorIfNonfinite(Right):
    def refuse(self, _norm, _parameters):
        pass


@breaks("GRN-NONFINITE-RAISE", says="returned")
class RaisesForNaNOnly(Right):
    def refuse(self, norm, _parameters):
        if torch.isnan(norm):
            raise RuntimeError("the norm is nan")


@breaks("GRN-NONFINITE-KEEP", says="before clip_grad_norm_ raised")
class ClipsBeforeItRaises(Right):
    def refuse(self, norm, parameters):
        for p in parameters:
            p.grad.mul_(0.5)
        super().refuse(norm, parameters)


@breaks("GRN-NONFINITE-RETURN", says="raised RuntimeError")
class AlwaysRaises(Right):
    def norm(self, gradients):
        norm = super().norm(gradients)
        self.refuse(norm, [])
        return norm


@breaks("GRN-NONFINITE-RETURN", says="expected")
class CountsNaNAsZero(Right):
    def norm(self, gradients):
        return super().norm([g.nan_to_num(0.0, 0.0, 0.0) for g in gradients])


@breaks("GRN-FINITE", says="raised RuntimeError")
class RaisesForLargeNorms(Right):
    def refuse(self, norm, _parameters):
        if not norm < 100:
            raise RuntimeError("the norm is too large")
