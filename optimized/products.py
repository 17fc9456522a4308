"""The products of a LoRA adapter, and the large product with its update, by Triton kernels or else by PyTorch.

`kept` is a dropout mask on the large operand x or g, or in `lora_expand` on the product, without the factor 1/(1-p).
"""

from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from optimized.dispatch.routes import ONE_KERNEL, why_not_one_kernel, why_not_one_reading
from optimized.dispatch.triton_kernels import why_not_triton
from optimized.matrices import add_product, linear, overreads
from optimized.philox import Kept


def lora_shrink(x: Tensor, a: Tensor, compute: torch.dtype, kept: Kept | None = None) -> Tensor:
    """``X[M, K] · A[R, K]ᵀ``, unrounded."""
    if _runs_on_triton(x, a):
        from optimized import kernels

        return kernels.lora_shrink(x, a, compute, kept)
    with _without_autocast(x):
        return _dropped(_wide(x, compute), kept) @ _wide(a, compute).mT


def lora_expand(
    s: Tensor,
    b: Tensor,
    scale: float,
    compute: torch.dtype,
    out: Tensor,
    added: bool = False,
    kept: Kept | None = None,
) -> None:
    """``scale · S[M, R] · B[N, R]ᵀ``, written to `out`, or added to it with `added`."""
    if _runs_on_triton(s, b, out):
        from optimized import kernels

        kernels.lora_expand(s, b, scale, compute, out, added, kept)
        return
    with _without_autocast(s):
        update = _dropped(s @ _wide(b, compute).mT * scale, kept)
        out.copy_(update + out if added else update)


def weight_grad(
    g: Tensor, s: Tensor, scale: float, compute: torch.dtype, out: Tensor, kept: Kept | None = None
) -> None:
    """``scale · g[M, N]ᵀ · S[M, R]``, written to `out`."""
    if _runs_on_triton(g, s, out):
        from optimized import kernels

        kernels.weight_grad(g, s, scale, compute, out, kept)
        return
    with _without_autocast(g):
        out.copy_(_dropped(_wide(g, compute), kept).mT @ s * scale)


def shrink_and_grad(
    g: Tensor,
    b: Tensor,
    s: Tensor,
    scale: float,
    compute: torch.dtype,
    out: Tensor,
    wanted: bool = False,
    kept: Kept | None = None,
) -> Tensor:
    """``T = g[M, N] · B[N, R]``, unrounded, and ``scale · gᵀ · S[M, R]``, written to `out`.

    If `why_not_one_reading` gives a reason, `lora_shrink` and `weight_grad` compute them; `wanted` is passed to it.
    """
    if _runs_on_triton(g, b, s, out) and why_not_one_reading(g, b.shape[1], compute, wanted) is None:
        from optimized import kernels

        return kernels.shrink_and_grad(g, b, s, scale, compute, out, kept=kept)
    weight_grad(g, s, scale, compute, out, kept)
    return lora_shrink(g, b.mT, compute, kept)


def linear_expand(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    S: Tensor,
    factor: Tensor,
    scale: float,
    routes: Collection[str] = (),
    kept: Kept | None = None,
) -> Tensor:
    """``y[M, N] = x[M, K] · weight[N, K]ᵀ + bias + scale · S[M, R] · factor[N, R]ᵀ``; `kept` masks the last term.

    One kernel computes y unless `why_not_one_kernel` gives a reason. Otherwise the update is written first and the
    large product is added in place, which reads y anyway. With a bias the large product comes first, because
    ``b + scale · S Bᵀ`` may be larger, and so rounded more coarsely, than the partial sums of the formula.
    """
    if why_not_one_kernel(x, weight, S.shape[1], ONE_KERNEL in routes, kept is not None) is None:
        from optimized import kernels

        return kernels.linear_expand(x, weight, bias, S, factor, scale, kept=kept)
    if bias is not None:
        y = linear(x, weight, bias)
        lora_expand(S, factor, scale, x.dtype, y, added=True, kept=kept)
        return y
    y = x.new_empty(x.shape[0], weight.shape[0])
    lora_expand(S, factor, scale, x.dtype, y, kept=kept)
    if x.dtype.itemsize == 2 and overreads(x, x.shape[1]):
        add_product(y, x.float(), weight.float().mT, 1.0)
    else:
        add_product(y, x, weight.mT, 1.0)
    return y


def _runs_on_triton(*operands: Tensor) -> bool:
    """Whether Triton can run, and autograd does not record, as it would in backward with `create_graph`."""
    recorded = torch.is_grad_enabled() and any(operand.requires_grad for operand in operands)
    return not recorded and why_not_triton(*operands) is None


def _wide(x: Tensor, compute: torch.dtype) -> Tensor:
    """x rounded to `compute`, in the dtype of the sums."""
    x = x.to(compute)
    return x.float() if compute in (torch.float16, torch.bfloat16) else x


def _dropped(x: Tensor, kept: Kept | None) -> Tensor:
    return x if kept is None else torch.where(kept.mask(x.shape[0], x.shape[1], device=x.device) > 0, x, 0.0)


def _without_autocast(x: Tensor) -> AbstractContextManager[None]:
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()
