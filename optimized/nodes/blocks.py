"""Shared parts of the autograd nodes of fused blocks: operands as one flat list, and second derivatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from optimized.projections import Needs, Operands
from reference.projection import Projection, checked


def operands_of(x: Tensor, **projections: Projection) -> list[Operands]:
    """The projections as operands, with the errors of the reference, which name the projection."""
    return [Operands._make(checked(x, projection, name)) for name, projection in projections.items()]


def flat(projections: Sequence[Operands]) -> list[Tensor | None]:
    """Weight, bias, lora_A and lora_B of each projection, as inputs of an autograd function."""
    return [operand for p in projections for operand in p[:4]]


def grouped(operands: Sequence[Any], scales: Sequence[float]) -> list[Operands]:
    """The inverse of `flat`."""
    return [Operands._make((*operands[4 * i : 4 * i + 4], scale)) for i, scale in enumerate(scales)]


def needs_of(flags: Sequence[bool]) -> list[Needs]:
    """The wanted gradients of each projection, from `needs_input_grad` of the flat operands."""
    return [Needs(False, *flags[i + 1 : i + 4]) for i in range(0, len(flags), 4)]


def differentiable_gradients(
    plain: Callable[[Tensor, Sequence[Operands]], Sequence[Tensor]],
    x: Tensor,
    projections: Sequence[Operands],
    needs_x: bool,
    needs: Sequence[Needs],
    gs: Sequence[Tensor | None],
    autocast: torch.dtype | None,
) -> list[Tensor | None]:
    """The gradients of x and of the flat operands, as formulas that autograd can differentiate again.

    Args:
        plain: the reference's outputs for x and the projections.
        gs: the gradient of each output, or None.
        autocast: the autocast dtype of forward, or None.
    """
    operands = [x, *flat(projections)]
    wanted = [needs_x, *(flag for need in needs for flag in need)]
    # aliases, because one operand may be computed from another, and that path must not count
    aliases = [t.view_as(t) if t is not None and want else t for t, want in zip(operands, wanted, strict=True)]
    asked = [t for t, want in zip(aliases, wanted, strict=True) if t is not None and want]
    with torch.autocast(x.device.type, dtype=autocast, enabled=autocast is not None):
        outputs = plain(x if aliases[0] is None else aliases[0], grouped(aliases[1:], [p.scale for p in projections]))
    used = [(y, g) for y, g in zip(outputs, gs, strict=True) if g is not None]
    ys, upstream = [y for y, _ in used], [g for _, g in used]
    found = iter(torch.autograd.grad(ys, asked, upstream, create_graph=True, allow_unused=True))
    return [next(found) if t is not None and want else None for t, want in zip(aliases, wanted, strict=True)]
