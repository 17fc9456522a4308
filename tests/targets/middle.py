"""A function and a layer in plain PyTorch that drop between lora_A and lora_B."""

import torch.nn.functional as F
from torch import nn

CONFORMANCE = {"name": "middle", "dropout_positions": ("mid",)}


def lora_linear(
    x,
    weight,
    bias,
    lora_A,
    lora_B,
    scale,
    *,
    dropout=0.0,
    dropout_position="mid",  # noqa: ARG001  (there is only one)
    training=False,
):
    """The formula, with dropout of x Aᵀ."""
    middle = F.dropout(F.linear(x, lora_A), dropout, training)
    update = F.linear(middle, lora_B) * scale
    return update if weight is None else F.linear(x, weight, bias) + update


class LinearLoRA(nn.Module):
    """The function as a layer."""

    def __init__(self, linear, r=8, lora_alpha=8, lora_dropout=0.0):
        super().__init__()
        self.base, self.p, self.scaling = linear.requires_grad_(False), lora_dropout, lora_alpha / r
        kind = {"bias": False, "dtype": linear.weight.dtype}
        self.lora_A = nn.Linear(linear.in_features, r, **kind)
        self.lora_B = nn.Linear(r, linear.out_features, **kind)
        nn.init.zeros_(self.lora_B.weight)

    def forward(self, x):
        weights = self.base.weight, self.base.bias, self.lora_A.weight, self.lora_B.weight
        return lora_linear(x, *weights, self.scaling, dropout=self.p, training=self.training)
