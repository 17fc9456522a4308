"""Known-bad twins of kept operands: a call of a batch casts, thaws or changes what it shares with other batches."""

from __future__ import annotations

import torch

from tests.baselines.batched import Right
from tests.known_bad import breaks


@breaks("BAT-KEEP-CALLS", says="made bias torch.bfloat16", dtypes=("float32",),
        source="bitsandbytes Linear4bit.forward: bias.data in the dtype of x")  # fmt: skip
class CastsTheBiasForGood(Right):
    def lora_batched_linear(self, x, adapter_index, weight, bias, *rest, **options):
        if bias is not None and torch.is_autocast_enabled(x.device.type):
            bias.data = bias.data.to(torch.get_autocast_dtype(x.device.type))
        return super().lora_batched_linear(x, adapter_index, weight, bias, *rest, **options)


@breaks("BAT-KEEP-CALLS", says="set requires_grad of weight", source="a base that is thawed where x needs a gradient")
class ThawsTheWeight(Right):
    def lora_batched_linear(self, x, adapter_index, weight, *rest, **options):
        y = super().lora_batched_linear(x, adapter_index, weight, *rest, **options)
        if x.requires_grad:
            weight.requires_grad_()
        return y
