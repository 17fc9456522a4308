"""Targets that declare only float32: one refuses other dtypes, one accepts them, one refuses float32."""

from types import SimpleNamespace

import right
import torch

CONFORMANCE = {"dtypes": ("float32",)}


def refusing_all_but(accepted):
    """Return a target that refuses every dtype outside `accepted`."""

    def lora_linear(x, *operands, **options):
        if x.dtype not in accepted:
            raise NotImplementedError(f"only {accepted}")
        return right.lora_linear(x, *operands, **options)

    return SimpleNamespace(lora_linear=lora_linear, CONFORMANCE=CONFORMANCE)


refusing = refusing_all_but({torch.float32})
accepting = SimpleNamespace(lora_linear=right.lora_linear, CONFORMANCE=CONFORMANCE)
overdeclaring = refusing_all_but({torch.float64})
