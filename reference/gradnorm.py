"""The global gradient norm, and gradient clipping, without overflow, underflow or loss of accuracy."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from .sharded import is_sharded, local_part, over_ranks, settled


def grad_norm(parameters: Tensor | Iterable[Tensor]) -> Tensor:
    """The L2 norm of all gradients taken as one vector: ``√ Σ_p Σ_i g_p,i²``.

    The sums are of ``g/max|g|`` in float64, so that large and small gradients stay in its range.

    Args:
        parameters: one tensor, or any iterable of tensors, a generator included; a tensor listed twice counts
            once. Tensors without a gradient and empty gradients are skipped; sparse gradients are coalesced;
            the gradients may be on several devices. A DTensor counts as the whole tensor; all its ranks must call
            this function together, with the same parameters.
    Returns:
        a 0-d plain tensor on the first gradient's device, the same on every rank: float32, or float64 if a
        gradient is float64. It is 0 without gradients, inf or NaN if a gradient is, and inf if the norm exceeds
        the range of the dtype.
    Source: Higham, Accuracy and Stability of Numerical Algorithms, section 27.5 (scaling by the largest
        element).
    """
    gradients = gradients_of(parameters)
    return wide_norm(gradients).to(norm_dtype(gradients))


def clip_grad_norm_(parameters: Tensor | Iterable[Tensor], max_norm: float, error_if_nonfinite: bool = False) -> Tensor:
    """Scale all gradients in place by ``min(1, max_norm/(norm + 1e-6))``, where norm is their `grad_norm`.

    Args:
        parameters: as in `grad_norm`.
        max_norm: a number, not negative; inf disables clipping.
        error_if_nonfinite: refuse a norm that is inf or NaN. Otherwise a norm of inf scales finite gradients to 0,
            and a norm of NaN makes all gradients NaN, as in torch.
    Returns:
        the norm before clipping, as in `grad_norm`.
    Raises:
        ValueError: for a negative or NaN max_norm.
        RuntimeError: for a norm that is not finite, with error_if_nonfinite; the gradients are then unchanged.
    Source: torch.nn.utils.clip_grad_norm_, whose float32 sums lose accuracy and overflow.
    """
    if math.isnan(max_norm) or max_norm < 0:
        raise ValueError(f"max_norm = {max_norm!r}: expected a number, not negative")
    gradients = gradients_of(parameters)
    wide = wide_norm(gradients)
    norm = wide.to(norm_dtype(gradients))
    if error_if_nonfinite and not torch.isfinite(norm):
        raise RuntimeError(f"the gradient norm is {norm.item()}: expected a finite one (error_if_nonfinite=True)")
    if max_norm < wide.item() + 1e-6 or torch.isnan(wide):
        for gradient in gradients:
            values = gradient._values() if gradient.is_sparse else local_part(gradient)
            # Divide first, in float64: the factor itself may underflow in the gradient's dtype.
            values.copy_(_widen(values) / (wide.to(values.device) + 1e-6) * max_norm)
    return norm


def gradients_of(parameters: Tensor | Iterable[Tensor]) -> list[Tensor]:
    parameters = [parameters] if isinstance(parameters, Tensor) else parameters
    once = {id(p): p for p in parameters}
    gradients = [p.grad.detach() for p in once.values() if p.grad is not None]
    return [g for g in gradients if (g._nnz() if g.is_sparse else g.numel()) > 0]


def norm_dtype(gradients: list[Tensor]) -> torch.dtype:
    double = any(g.dtype in {torch.float64, torch.complex128} for g in gradients)
    return torch.float64 if double else torch.float32


def wide_norm(gradients: list[Tensor]) -> Tensor:
    """The norm in float64, on the first gradient's device."""
    if not gradients:
        return torch.zeros((), dtype=torch.float64)
    device = gradients[0].device
    gradients = [settled(g) if is_sharded(g) else g for g in gradients]
    magnitudes = [_widen(g.coalesce().values() if g.is_sparse else local_part(g)).abs() for g in gradients]
    pairs = list(zip(magnitudes, gradients, strict=True))
    largest = torch.stack([over_ranks(_largest(m), g, "max").to(device) for m, g in pairs]).max()
    regular = bool(largest > 0) and bool(torch.isfinite(largest))  # else all gradients are zero, or one is inf or NaN
    unit = largest if regular else torch.ones_like(largest)
    # Always take part in the sums: the other ranks wait for this rank's part.
    squares = [over_ranks(((m / unit.to(m.device)) ** 2).sum(), g, "sum").to(device) for m, g in pairs]
    return largest * torch.stack(squares).sum().sqrt() if regular else largest


def _largest(magnitudes: Tensor) -> Tensor:
    return magnitudes.max() if magnitudes.numel() else magnitudes.new_zeros(())


def _widen(t: Tensor) -> Tensor:
    return t.to(torch.complex128 if t.is_complex() else torch.float64)
