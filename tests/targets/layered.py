"""A layer whose gradient of lora_B is wrong where the upstream gradient is not contiguous."""

import torch
import torch.nn.functional as F
from torch import nn


class Update(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, lora_A, lora_B, scale):
        ctx.save_for_backward(x, lora_A, lora_B)
        ctx.scale = scale
        return F.linear(F.linear(x, lora_A), lora_B) * scale

    @staticmethod
    def backward(ctx, g):
        x, lora_A, lora_B = ctx.saved_tensors
        x2, g2 = x.reshape(-1, x.shape[-1]), g.reshape(-1, g.shape[-1])
        read = torch.empty_like(g2, memory_format=torch.contiguous_format)
        flat = g.as_strided((g2.numel(),), (1,), g.storage_offset()) if 0 not in g.stride() else g2.reshape(-1)
        read.copy_(flat.reshape(g2.shape))  # the defect: strides are ignored
        t = g2 @ lora_B
        return (
            (t @ lora_A * ctx.scale).reshape(x.shape),
            t.T @ x2 * ctx.scale,
            read.T @ (x2 @ lora_A.T) * ctx.scale,
            None,
        )


class LinearLoRA(nn.Linear):
    def __init__(self, orig_linear, dim=8, alpha=32, dropout=0.0, dropout_position="post",
                 lora_A_init_method="xavier", lora_dtype=None, **options):  # fmt: skip
        has_bias = orig_linear.bias is not None
        super().__init__(orig_linear.in_features, orig_linear.out_features, has_bias, device="meta")
        self.weight, self.bias = orig_linear.weight, orig_linear.bias
        dtype = lora_dtype or orig_linear.weight.dtype
        device = orig_linear.weight.device
        self.lora_A = nn.Linear(self.in_features, dim, bias=False, dtype=dtype, device=device)
        self.lora_B = nn.Linear(dim, self.out_features, bias=False, dtype=dtype, device=device)
        self.scale = alpha / dim

    def forward(self, x):
        base = F.linear(x, self.weight, self.bias)
        A, B = self.lora_A.weight, self.lora_B.weight
        return base + Update.apply(x.to(A.dtype), A, B, self.scale).to(base.dtype)
