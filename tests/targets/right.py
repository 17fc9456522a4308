"""A right target of the group linear in plain PyTorch."""

import torch.nn.functional as F

CONFORMANCE = {"name": "right", "version": "1.0"}


def lora_linear(x, weight, bias, lora_A, lora_B, scale, *, dropout=0.0, dropout_position="post", training=False):
    pre, post = (dropout, 0.0) if dropout_position == "pre" else (0.0, dropout)
    dropped = F.dropout(x.to(lora_A.dtype), pre, training)
    update = F.dropout(F.linear(F.linear(dropped, lora_A) * scale, lora_B), post, training)
    base = F.linear(x, weight, bias)
    return base + update.to(base.dtype)
