"""Known-bad twins of grad norm: a rank computes the norm or clips from its own part of the gradient."""

from __future__ import annotations

import math

import torch
from torch import distributed, nn

import reference
from reference.sharded import local_part
from tests.baselines.distributed import Right, distributed_breaks


def here(parameters):
    """Return parameters that hold this rank's local parts of the gradients."""
    found = []
    for parameter in parameters:
        found.append(nn.Parameter(torch.zeros_like(local_part(parameter.grad))))
        found[-1].grad = local_part(parameter.grad)
    return found


@distributed_breaks("DIS-NORM", says="norm on rank 0 of")
class TakesTheNormOfItsOwnPart(Right):
    @staticmethod
    def clip_grad_norm_(parameters, max_norm, error_if_nonfinite=False):
        return reference.clip_grad_norm_(here(parameters), max_norm, error_if_nonfinite)


@distributed_breaks("DIS-NORM", says="norm on rank 0 of")
class CountsACopyOnEveryRank(Right):
    def clip_grad_norm_(self, parameters, max_norm, error_if_nonfinite=False):
        square = reference.grad_norm(here(parameters)) ** 2
        distributed.all_reduce(square)
        norm = square.sqrt()
        for parameter in parameters:
            parameter.grad.mul_(min(1.0, max_norm / (norm.item() + 1e-6)))
        return norm


@distributed_breaks("DIS-CLIP", says="after clipping on rank 0 of")
class ClipsByTheNormOfItsOwnPart(Right):
    def clip_grad_norm_(self, parameters, max_norm, error_if_nonfinite=False):
        norm = reference.grad_norm(parameters)
        reference.clip_grad_norm_(here(parameters), max_norm, error_if_nonfinite)
        return norm


@distributed_breaks("DIS-NORM-RANGE", says="norm on rank 0")
class SquaresInFloat32(Right):
    def clip_grad_norm_(self, parameters, max_norm, error_if_nonfinite=False):
        norm = nn.utils.clip_grad_norm_(parameters, max_norm, error_if_nonfinite=error_if_nonfinite)
        return norm.full_tensor().float()


# the other ranks wait, or gloo ends one that receives what it did not expect
@distributed_breaks("DIS-NONFINITE", says="rank ")
class RaisesWhereItIs(Right):
    def clip_grad_norm_(self, parameters, max_norm, error_if_nonfinite=False):
        if error_if_nonfinite and not all(bool(p.grad.isfinite().all()) for p in here(parameters)):
            raise RuntimeError("a gradient is not finite")
        return reference.clip_grad_norm_(parameters, max_norm, error_if_nonfinite)


@distributed_breaks("DIS-NONFINITE", says="was modified before clip_grad_norm_ raised")
class ClipsBeforeItRaises(Right):
    def clip_grad_norm_(self, parameters, max_norm, error_if_nonfinite=False):
        norm = reference.clip_grad_norm_(parameters, max_norm)
        if error_if_nonfinite and not math.isfinite(norm):
            raise RuntimeError(f"the norm is {norm}")
        return norm
