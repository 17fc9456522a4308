"""Known-bad twins of `lora_packed_linear`: a lost term, an ignored compute dtype, a base without a graph."""

from __future__ import annotations

import torch

import reference
from tests.baselines.quantised import RightPacked
from tests.known_bad import breaks


@breaks("QNT-FN", says="as if the bias term were missing", source="a bias that a kernel does not add")
class LosesTheBiasOfTheFunction(RightPacked):
    def lora_packed_linear(self, x, weight, bias, *rest, **options):
        return reference.lora_packed_linear(x, weight, None, *rest, **options)


@breaks("QNT-FN", says="as if the base term were missing", source="a base product without a graph")
class LosesTheBaseInDXOfTheFunction(RightPacked):
    def lora_packed_linear(self, x, weight, bias, lora_A, lora_B, scale, **options):
        whole = reference.lora_packed_linear(x.detach(), weight, bias, lora_A, lora_B, scale, **options)
        update = reference.lora_linear(x, None, None, lora_A, lora_B, scale)
        return whole.detach() + (update - update.detach()).to(whole.dtype)


@breaks("QNT-FN", says="worst", dtypes=("float32",), source="bfloat16 as a default")
class AlwaysComputesTheFunctionInBfloat16(RightPacked):
    def lora_packed_linear(self, x, *operands, compute_dtype=None, **options):
        return reference.lora_packed_linear(x, *operands, compute_dtype=torch.bfloat16, **options)
