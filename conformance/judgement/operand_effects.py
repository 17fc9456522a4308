"""What a call must leave alone: its operands, the memory around them, and the results of the same call before."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from conformance.cases.memory_layout import Placed
from conformance.judgement.outcomes import require

Tensors = Mapping[str, "torch.Tensor | None"]


def require_unmodified(operands: Mapping[str, Placed], what: str = "") -> None:
    """Require that no operand has changed; `what` is the change of an output that may have reached it."""
    for name, placed in operands.items():
        require(not placed.contents_changed(), f"{what} modified {name}" if what else f"{name} was modified in place")


def require_margins(operands: Mapping[str, Placed], gradients: Tensors) -> None:
    """Require that the memory around the operands was not written, and that no gradient holds a NaN from there."""
    for name, placed in operands.items():
        require(not placed.margins_changed(), f"memory around {name} was written")
    for name, gradient in gradients.items():
        require(gradient is not None, f"{name} has no gradient")
        assert gradient is not None
        require(not bool(torch.isnan(gradient).any()), f"NaN from outside an operand reached the gradient of {name}")


def copied(results: Tensors, gradients: Tensors) -> dict[str, torch.Tensor | None]:
    """Copies of what a call gave, since a later call may write over it."""
    found = {**results, **{f"the gradient of {name}": gradient for name, gradient in gradients.items()}}
    return {name: None if t is None else t.detach().clone() for name, t in found.items()}


def require_equal_runs(first: Tensors, second: Tensors) -> None:
    """Require that two identical calls gave the same bits."""
    for name, one in first.items():
        other = second[name]
        require(one is not None and other is not None, f"{name} is None")
        assert one is not None
        assert other is not None
        require(torch.equal(one, other), f"{name} differs between two identical runs")
