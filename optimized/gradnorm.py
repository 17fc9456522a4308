"""The global gradient norm in one pass over the gradients, and clipping in a second pass."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from reference.gradnorm import clip_grad_norm_ as plain_clip_grad_norm_
from reference.gradnorm import gradients_of, norm_dtype, wide_norm
from reference.sharded import is_sharded
from reference.torch_internals import norms, scale_

_PIECE = 2**16  # elements whose float64 copy stays in a core's cache


def grad_norm(parameters: Tensor | Iterable[Tensor]) -> Tensor:
    """``√ Σ_p Σ_i g_p,i²``: `reference.grad_norm`, with its dtypes and special cases.

    Squares are summed in float64, where the square of a float32 cannot overflow, so no pass for the largest element is
    needed. The reference computes float64, complex and sparse gradients, DTensors, and gradients on several devices.
    """
    gradients = gradients_of(parameters)
    return _norm(gradients).to(norm_dtype(gradients))


def clip_grad_norm_(parameters: Tensor | Iterable[Tensor], max_norm: float, error_if_nonfinite: bool = False) -> Tensor:
    """Scale all gradients in place by ``min(1, max_norm/(norm + 1e-6))``: `reference.clip_grad_norm_`."""
    parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    gradients = gradients_of(parameters)
    wide = _norm(gradients)
    length = wide.item()
    factor = max_norm / (length + 1e-6)
    # If norm and factor are normal float32 numbers, there is no error to raise and the factor does not underflow.
    if not (length < 1e38 and 1e-30 < factor < math.inf and _are_plain(gradients)):
        return plain_clip_grad_norm_(parameters, max_norm, error_if_nonfinite)
    if factor < 1.0:
        if single := [g for g in gradients if g.dtype == torch.float32]:
            scale_(single, factor)
        for gradient in gradients:
            if gradient.dtype != torch.float32:  # in 16 bits the factor itself would be rounded
                gradient.copy_(gradient.float().mul_(factor))
    return wide.to(norm_dtype(gradients))


def _norm(gradients: list[Tensor]) -> Tensor:
    """The norm in float64, on the first gradient's device."""
    if not _are_plain(gradients):
        return wide_norm(gradients)
    if not gradients[0].is_cpu:
        return _length(norms(gradients, torch.float64))
    few = [g for g in gradients if g.numel() <= _PIECE // 2]
    found = list(norms(few, torch.float64)) if few else []
    buffer = torch.empty(_PIECE, dtype=torch.float64)
    for gradient in gradients:
        if gradient.numel() > _PIECE // 2:  # ten times as fast as converting and summing in one operation
            squares = [_square(piece, buffer) for piece in torch.split(gradient.reshape(-1), _PIECE)]
            found.append(torch.stack(squares).sum().sqrt())
    return _length(found)


def _length(parts: Sequence[Tensor]) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(torch.stack(list(parts)))
    return length


def _square(piece: Tensor, buffer: Tensor) -> Tensor:
    wide = buffer[: piece.numel()].copy_(piece)
    return wide.dot(wide)


def _are_plain(gradients: list[Tensor]) -> bool:
    """Whether there are gradients, all real, dense, unsharded, of at most 32 bits and on one device."""
    narrow = (torch.float32, torch.float16, torch.bfloat16)
    return len({g.device for g in gradients}) == 1 and all(
        g.dtype in narrow and g.layout == torch.strided and not is_sharded(g) for g in gradients
    )
