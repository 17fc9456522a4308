"""Targets that declare float32 only: one refuses other dtypes, one takes them, one refuses float32."""

from types import SimpleNamespace

import right
import torch

CONFORMANCE = {"dtypes": ("float32",)}


def refusing_all_but(accepted):
    """A target that refuses every other dtype."""

    def lora_linear(x, *operands, **options):
        if x.dtype not in accepted:
            raise NotImplementedError(f"only {accepted}")
        return right.lora_linear(x, *operands, **options)

    return SimpleNamespace(lora_linear=lora_linear, CONFORMANCE=CONFORMANCE)


refusing = refusing_all_but({torch.float32})
accepting = SimpleNamespace(lora_linear=right.lora_linear, CONFORMANCE=CONFORMANCE)
overdeclaring = refusing_all_but({torch.float64})
