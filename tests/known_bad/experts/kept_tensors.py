"""Known-bad twins of kept tensors: a call of experts casts, thaws or changes an operand or a parameter for good."""

from __future__ import annotations

import torch

from tests.baselines.expert_modules import RightExperts
from tests.baselines.experts import Right
from tests.known_bad import breaks
from tests.known_bad.experts.mixture_results import wrong


@breaks("EXP-KEEP-CALLS", says="made bias torch.bfloat16", dtypes=("float32",),
        source="bitsandbytes Linear4bit.forward: bias.data in the dtype of x")  # fmt: skip
class CastsTheBiasForGood(Right):
    def call(self, x, own, weight, bias, *rest):
        if bias is not None and torch.is_autocast_enabled(x.device.type):
            bias.data = bias.data.to(torch.get_autocast_dtype(x.device.type))
        return super().call(x, own, weight, bias, *rest)


@wrong("EXP-MOD-KEEP-CALLS", says="made down_proj torch.bfloat16", dtypes=("float32",), source="weights cast in place")
class CastsTheWeightForGood(RightExperts):
    def forward(self, hidden_states, *routing):
        y = super().forward(hidden_states, *routing)
        if torch.is_autocast_enabled(hidden_states.device.type):
            self.down_proj.data = self.down_proj.data.to(torch.bfloat16)
        return y


@wrong("EXP-MOD-KEEP-CALLS", says="set requires_grad of down_proj", source="a base that is thawed in training")
class ThawsTheExperts(RightExperts):
    def forward(self, hidden_states, *routing):
        y = super().forward(hidden_states, *routing)
        self.down_proj.requires_grad_(self.training and torch.is_grad_enabled())
        return y
