"""The low-rank update and its gradients as one autograd node, on Triton kernels if they can run."""

import math
from typing import Any

import torch
from torch import Tensor

from optimized.products import lora_expand, lora_shrink, shrink_and_grad, weight_grad


class LoRATritonFunction(torch.autograd.Function):
    """The adapter term ``y = scale · (x Aᵀ) Bᵀ``, called as ``apply(x, lora_A, lora_B, scale, dtype)``.

    Its gradients are ``dX = scale · (g B) A``, ``dA = scale · (g B)ᵀ x`` and ``dB = scale · gᵀ (x Aᵀ)``,
    each only if needed and in its operand's dtype.

    Args:
        x: [*, K]; any number of leading dimensions, possibly empty; any strides.
        lora_A: [r, K].   lora_B: [N, r].   Any strides. x is rounded to their dtype; under autocast all three
            are rounded to the autocast dtype, as in `F.linear`.
        scale: a number; it gets no gradient.
        dtype: the dtype of the result; None for the dtype of x, or under autocast its dtype.
    Returns:
        [*, N]. The intermediates x Aᵀ and g B are kept in float32 at least, and so are all sums. If
        `why_not_triton(x, lora_A, lora_B)` gives a reason, PyTorch computes the same. PyTorch also computes in
        backward with `create_graph`, so that second derivatives are correct.
    Raises:
        ValueError: if K or r do not chain, naming shapes; if A and B differ in dtype, or the three in device.
        NotImplementedError: on complex operands.
        TypeError: on a scale that requires a gradient.
        RuntimeError: in backward, if an operand was changed in place since forward.

    At most x, A and B are saved; x Aᵀ is computed again for dB. A caller that saves x Aᵀ can use `adapter_forward`
    and `adapter_gradients`.
    Source: Hu et al., LoRA (2021), section 4.1; the signature is that of NeMo Automodel.
    """

    @staticmethod
    def forward(x: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float, dtype: torch.dtype | None) -> Tensor:
        check_operands(x, lora_A, lora_B, scale)
        compute, dtype = dtypes(x, lora_A, lora_B, dtype)
        if torch.compiler.is_compiling():
            y: Tensor = _compiled_forward(x, lora_A, lora_B, float(scale), compute, dtype)
            return y
        return adapter_forward(x, lora_A, lora_B, float(scale), compute, dtype)[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        x, lora_A, lora_B, scale, dtype = inputs
        needs_x, needs_A, needs_B = ctx.needs_input_grad[:3]
        ctx.set_materialize_grads(False)
        ctx.scale, ctx.compute = float(scale), dtypes(x, lora_A, lora_B, dtype)[0]
        ctx.wanted = (
            x.dtype if needs_x else None,
            lora_A.dtype if needs_A else None,
            lora_B.dtype if needs_B else None,
        )
        ctx.save_for_backward(
            x if needs_A or needs_B else None,
            lora_A if needs_x or needs_B else None,
            lora_B if needs_x or needs_A else None,
        )

    @staticmethod
    def backward(ctx: Any, d_y: Tensor | None) -> tuple[Tensor | None, ...]:
        if d_y is None:
            return (None,) * 5
        x, lora_A, lora_B = ctx.saved_tensors
        wanted = ctx.wanted
        if torch.compiler.is_compiling():
            found = iter(_compiled_gradients(d_y, x, lora_A, lora_B, ctx.scale, ctx.compute, *wanted))
            return (*(None if dtype is None else next(found) for dtype in wanted), None, None)
        return (*adapter_gradients(d_y, x, lora_A, lora_B, ctx.scale, ctx.compute, wanted), None, None)


def adapter_forward(
    x: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float, compute: torch.dtype, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """``y = scale · S Bᵀ`` and ``S = x Aᵀ``, outside autograd.

    Args: as in `LoRATritonFunction`; operands are rounded to the dtype `compute`.
    Returns: y [*, N] in `dtype`, and S [M, r] in float32 (float64 for float64); M is the product of the leading
    dimensions.
    """
    s = lora_shrink(_rows(x), lora_A, compute)
    y = x.new_empty(*x.shape[:-1], lora_B.shape[0], dtype=dtype)
    lora_expand(s, lora_B, scale, compute, _rows(y))
    return y, s


def adapter_gradients(
    d_y: Tensor,
    x: Tensor | None,
    lora_A: Tensor | None,
    lora_B: Tensor | None,
    scale: float,
    compute: torch.dtype,
    wanted: tuple[torch.dtype | None, torch.dtype | None, torch.dtype | None],
    s: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """dX, dA and dB, outside autograd, each in its dtype in `wanted`, or None for a dtype of None.

    An operand that is not needed may be None: x is needed for dA and dB, A for dX and dB, B for dX and dA. `s` is
    S from `adapter_forward`; without it, S is computed again.
    """
    x_dtype, A_dtype, B_dtype = wanted
    g = _rows(d_y)
    d_x = d_A = d_B = None
    if B_dtype is not None:
        if s is None:
            s = lora_shrink(_rows(_given(x)), _given(lora_A), compute)
        d_B = g.new_empty(g.shape[1], s.shape[1], dtype=B_dtype)
        if x_dtype is None and A_dtype is None:
            weight_grad(g, s, scale, compute, d_B)
            return None, None, d_B
        t = shrink_and_grad(g, _given(lora_B), s, scale, compute, d_B)
    elif x_dtype is None and A_dtype is None:
        return None, None, None
    else:
        t = lora_shrink(g, _given(lora_B).mT, compute)
    if A_dtype is not None:
        rows = _rows(_given(x))
        d_A = g.new_empty(t.shape[1], rows.shape[1], dtype=A_dtype)
        weight_grad(rows, t, scale, compute, d_A.mT)
    if x_dtype is not None:
        factor = _given(lora_A).mT
        d_x = g.new_empty(*d_y.shape[:-1], factor.shape[0], dtype=x_dtype)
        lora_expand(t, factor, scale, compute, _rows(d_x))
    return d_x, d_A, d_B


def _given(operand: Tensor | None) -> Tensor:
    """The operand, or an error if it is None although a wanted gradient needs it."""
    if operand is None:
        raise TypeError("an operand that a wanted gradient needs is None")
    return operand


def check_operands(x: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> None:
    """Raise the errors of `LoRATritonFunction`."""
    if x.dim() == 0:
        raise ValueError("x has no dimensions: it must be [*, K]")
    for name, factor in (("lora_A", lora_A), ("lora_B", lora_B)):
        if factor.dim() != 2:
            raise ValueError(f"{name} is {list(factor.shape)}: it must have two dimensions")
        if factor.device != x.device:
            raise ValueError(f"{name} is on {factor.device} but x is on {x.device}: they must be on one device")
    if lora_A.shape[1] != x.shape[-1]:
        raise ValueError(
            f"lora_A is {list(lora_A.shape)} but x has {x.shape[-1]} features: "
            f"its second dimension must be {x.shape[-1]}"
        )
    if lora_B.shape[1] != lora_A.shape[0]:
        raise ValueError(
            f"lora_B is {list(lora_B.shape)} but lora_A is {list(lora_A.shape)}: "
            f"its second dimension must be {lora_A.shape[0]}"
        )
    for name, operand in (("x", x), ("lora_A", lora_A), ("lora_B", lora_B)):
        if operand.is_complex():
            raise NotImplementedError(f"{name} is {_name(operand.dtype)}: the operands must be real")
    if getattr(scale, "requires_grad", False):
        raise TypeError("scale requires a gradient: it must be a number")


def dtypes(x: Tensor, lora_A: Tensor, lora_B: Tensor, dtype: torch.dtype | None) -> tuple[torch.dtype, torch.dtype]:
    """The dtype to round operands to, and the dtype of the result, chosen as by `F.linear`.

    Operands are rounded to the adapter's dtype, or under autocast to its dtype, except float64.
    """
    kind = x.device.type
    autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    if autocast and all(f.is_floating_point() and f.dtype != torch.float64 for f in (lora_A, lora_B)):
        compute = torch.get_autocast_dtype(kind)
        return compute, dtype or compute
    if lora_A.dtype != lora_B.dtype:
        names = _name(lora_A.dtype), _name(lora_B.dtype)
        raise ValueError(f"lora_B is {names[1]} but lora_A is {names[0]}: they must have one dtype")
    return lora_A.dtype, dtype or x.dtype


def _rows(x: Tensor) -> Tensor:
    """x as [M, K], copied only if strides cannot describe it."""
    return x.resolve_neg().reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@torch.library.custom_op("loraspec::adapter", mutates_args=())
def _compiled_forward(
    x: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float, compute: torch.dtype, dtype: torch.dtype
) -> Tensor:
    """`adapter_forward` as one opaque operator, so that `torch.compile` does not break its graph."""
    return adapter_forward(x, lora_A, lora_B, scale, compute, dtype)[0]


@_compiled_forward.register_fake
def _(x: Tensor, _A: Tensor, lora_B: Tensor, _scale: float, _compute: torch.dtype, dtype: torch.dtype) -> Tensor:
    return x.new_empty(*x.shape[:-1], lora_B.shape[0], dtype=dtype)


@torch.library.custom_op("loraspec::adapter_gradients", mutates_args=())
def _compiled_gradients(
    d_y: Tensor,
    x: Tensor | None,
    lora_A: Tensor | None,
    lora_B: Tensor | None,
    scale: float,
    compute: torch.dtype,
    x_dtype: torch.dtype | None,
    A_dtype: torch.dtype | None,
    B_dtype: torch.dtype | None,
) -> list[Tensor]:
    """`adapter_gradients` as one opaque operator; it returns only the wanted gradients."""
    found = adapter_gradients(d_y, x, lora_A, lora_B, scale, compute, (x_dtype, A_dtype, B_dtype))
    return [gradient.contiguous() for gradient in found if gradient is not None]


@_compiled_gradients.register_fake
def _(
    d_y: Tensor,
    x: Tensor | None,
    lora_A: Tensor | None,
    lora_B: Tensor | None,
    _scale: float,
    _compute: torch.dtype,
    x_dtype: torch.dtype | None,
    A_dtype: torch.dtype | None,
    B_dtype: torch.dtype | None,
) -> list[Tensor]:
    shapes = []
    if x_dtype is not None and lora_A is not None:
        shapes.append(((*d_y.shape[:-1], lora_A.shape[1]), x_dtype))
    if A_dtype is not None and x is not None and lora_B is not None:
        shapes.append(((lora_B.shape[1], x.shape[-1]), A_dtype))
    if B_dtype is not None and lora_A is not None:
        shapes.append(((d_y.shape[-1], lora_A.shape[0]), B_dtype))
    return [d_y.new_empty(shape, dtype=dtype) for shape, dtype in shapes]
