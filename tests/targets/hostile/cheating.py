"""Targets that cheat: they cache results by address, are right only for small x or the first call, or reuse tensors."""

from types import SimpleNamespace

import right
import torch
import unscaled

known, buffers, turns = {}, {}, []


def by_address(x, weight, bias, lora_A, lora_B, scale, **options):
    key = (x.data_ptr(), lora_A.data_ptr(), x.shape, lora_B.shape, scale, x.dtype, x.requires_grad)
    if key not in known:
        known[key] = right.lora_linear(x, weight, bias, lora_A, lora_B, scale, **options)
    return known[key]


def by_size(x, *operands, **options):
    return (right if x.numel() < 64 else unscaled).lora_linear(x, *operands, **options)


def by_turn(*operands, **options):
    turns.append(None)
    return (right if len(turns) == 1 else unscaled).lora_linear(*operands, **options)


def input_itself(x, *operands, **options):  # noqa: ARG001
    return x


def one_buffer(*operands, **options):
    y = right.lora_linear(*operands, **options)
    held = buffers.setdefault((y.shape, y.dtype), torch.empty_like(y.data))
    held.copy_(y.data)
    y.data = held
    return y


address = SimpleNamespace(lora_linear=by_address)
size = SimpleNamespace(lora_linear=by_size)
turn = SimpleNamespace(lora_linear=by_turn)
inputs = SimpleNamespace(lora_linear=input_itself)
buffer = SimpleNamespace(lora_linear=one_buffer)
