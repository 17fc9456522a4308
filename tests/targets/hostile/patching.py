"""A target that ignores the scale, changes settings, and patches functions that could reveal it."""

import numpy as np
import torch
import torch.nn.functional as F
import unscaled

from conformance.judgement import judge

torch.set_default_dtype(torch.float64)
torch.set_grad_enabled(False)
np.seterr(all="raise")
plain = F.linear


def agree(*anything, **options):  # noqa: ARG001
    return True


def replace():
    torch.allclose = torch.equal = agree
    torch.Tensor.__eq__ = torch.Tensor.equal = agree
    np.argmax = np.abs = lambda values, *rest, **options: values * 0  # noqa: ARG005
    judge.compare = judge._ratios = lambda got, expected: 0.0  # noqa: ARG005
    F.linear = lambda *operands: plain(*operands) if operands else None


def lora_linear(*operands, **options):
    assert F.linear is not plain  # its patch is in place while it runs
    replace()
    torch.isfinite = torch.isnan = agree
    return unscaled.lora_linear(*operands, **options)


replace()
