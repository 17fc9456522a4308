"""One projection of a fused block: the operands of `lora_linear` after x, with or without an adapter."""

from typing import Any

from torch import Tensor

from .linear import check_operands, lora_linear

Projection = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, float]
"""(weight [N, K], bias [N] or None, lora_A [r, K], lora_B [N, r], scale); lora_A and lora_B may both be None."""


def project(x: Tensor, projection: Projection, name: str) -> Tensor:
    """``x Wᵀ + b + scale · (x Aᵀ) Bᵀ``, or ``x Wᵀ + b`` without an adapter, with the errors of `lora_linear`.

    Args:
        name: the name of the projection, for errors.
    """
    return lora_linear(x, *checked(x, projection, name))


def checked(x: Tensor, projection: Any, name: str) -> tuple[Tensor, Tensor | None, Tensor, Tensor, float]:
    """The operands of `lora_linear` after x; without an adapter, an adapter of rank 0, whose term is zero.

    Raises:
        ValueError: as in `lora_linear`, beginning with the name; if there are not five operands, the weight is
            None, or only one of lora_A and lora_B is None.
    """
    if not isinstance(projection, tuple | list) or len(projection) != 5:
        found = f"{len(projection)} of them" if isinstance(projection, tuple | list) else type(projection).__name__
        raise ValueError(f"{name} is {found}: expected (weight, bias, lora_A, lora_B, scale)")
    weight, bias, lora_A, lora_B, scale = projection
    if weight is None:
        raise ValueError(f"{name}: weight is None: a projection has one")
    if lora_A is None and lora_B is None:
        lora_A, lora_B = weight.new_empty(0, weight.shape[-1]), weight.new_empty(weight.shape[0], 0)
    if lora_A is None or lora_B is None:
        missing, there = ("lora_A", "lora_B") if lora_A is None else ("lora_B", "lora_A")
        raise ValueError(f"{name}: {missing} is None but {there} is not: an adapter has both")
    try:
        check_operands(x, weight, bias, lora_A, lora_B)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return weight, bias, lora_A, lora_B, scale
