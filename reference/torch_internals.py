"""PyTorch's private names that this package and `optimized` use, each with a public fall-back.

A name that a version of PyTorch lacks costs speed, never a result. `conformance.isolation.torch_internals` has those of
the suite; no other file may use one.
"""

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def found(name: str) -> Any | None:
    """The object that PyTorch has under this name below `torch`, or None."""
    try:
        return attrgetter(name)(torch)
    except AttributeError:
        return None


_transforms_active: Callable[[], bool] | None = found("_C._are_functorch_transforms_active")
_autocast_active: Callable[[], bool] | None = found("_C._is_any_autocast_enabled")
_dispatch_modes: Callable[[], int] | None = found("_C._len_torch_dispatch_stack")
_is_wrapped: Callable[[Tensor], bool] | None = found("_C._functorch.is_functorch_wrapped_tensor")
_int_mm: Callable[[Tensor, Tensor], Tensor] | None = found("_int_mm")
_foreach_norm: Callable[..., Sequence[Tensor]] | None = found("_foreach_norm")
_foreach_mul_: Callable[..., None] | None = found("_foreach_mul_")
_unsafe_view: Callable[..., Tensor] | None = found("ops.aten._unsafe_view.default")
_FUNCTION_BASE: type | None = found("_C._FunctionBase")
_HAS_LEVEL = found("autograd.forward_ad._current_level") is not None


def is_transformed(*operands: Tensor | None) -> bool:
    """Whether torch.func or forward-mode differentiation is at work on these operands, or around the call.

    The fall-back sees the operands alone. An operand that no transform has wrapped is computed alike in and out of it.
    """
    if _transforms_active is not None and _HAS_LEVEL:
        return _transforms_active() or forward_ad._current_level >= 0
    return any(t is not None and (is_wrapped(t) or _has_tangent(t)) for t in operands)


def _has_tangent(operand: Tensor) -> bool:
    return forward_ad.unpack_dual(operand).tangent is not None  # type: ignore[no-untyped-call]


def is_wrapped(operand: Tensor) -> bool:
    """Whether torch.func has wrapped this tensor."""
    if _is_wrapped is not None:
        return _is_wrapped(operand)
    return torch.func.debug_unwrap(operand) is not operand


def is_autocast(device: str) -> bool:
    """Whether autocast is active: on any device, or, by the fall-back, on this one."""
    return torch.is_autocast_enabled(device) if _autocast_active is None else _autocast_active()


def may_be_dispatched() -> bool:
    """Whether a dispatch mode, such as selective checkpointing, is active; the fall-back says that it may be."""
    return _dispatch_modes is None or _dispatch_modes() > 0


def plain_apply(node: type[torch.autograd.Function]) -> Callable[..., Any]:
    """`node.apply` without its check for torch.func, which takes as long as a small product.

    Use it where `is_transformed` is false. The fall-back is `node.apply` itself.
    """
    if _FUNCTION_BASE is None:
        return node.apply
    apply: Callable[..., Any] = super(torch.autograd.Function, node).apply  # type: ignore[misc]
    return apply


def int8_product(left: Tensor, right: Tensor) -> Tensor:
    """``left right`` of int8 matrices [N, K] and [K, M], in int32; the fall-back multiplies exactly in float64."""
    if _int_mm is not None:
        return _int_mm(left, right)
    return left.double().mm(right.double()).to(torch.int32)


def norms(tensors: Sequence[Tensor], dtype: torch.dtype) -> Sequence[Tensor]:
    """``√ Σ_i t_i²`` of each tensor, computed in `dtype`."""
    if _foreach_norm is not None:
        return _foreach_norm(tensors, 2, dtype)
    return [torch.linalg.vector_norm(t, dtype=dtype) for t in tensors]


def scale_(tensors: Sequence[Tensor], factor: float) -> None:
    """Multiply each tensor by the factor in place."""
    if _foreach_mul_ is not None:
        _foreach_mul_(tensors, factor)
        return
    for t in tensors:
        t.mul_(factor)


def reshaped(t: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A new tensor in this shape, which autograd does not treat as a view; the fall-back copies it."""
    return t.view(shape).clone() if _unsafe_view is None else _unsafe_view(t, shape)
