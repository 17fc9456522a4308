"""The three products of a LoRA adapter, by the Triton kernels where they can run, otherwise by PyTorch.

With `kept`, the large operand x or g, or of `lora_expand` the product, is what dropout keeps of it, not divided by 1-p.
"""

import functools
import importlib.util
import os
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from optimized.philox import Kept
from optimized.routes import why_not_one_reading


def why_not_triton(*operands: Tensor) -> str | None:
    """Why PyTorch, and not the Triton kernels, multiplies these operands; None when Triton does.

    Every product asks this of its own operands, and nothing else decides.
    """
    if reason := next(filter(None, map(_why_not_tensor, operands)), None):
        return reason
    device = operands[0].device
    if device.type == "cuda" and any(operand.dtype == torch.float64 for operand in operands):
        return "float64 on a GPU is left to cuBLAS"
    return why_not_triton_on(device)


def why_not_triton_on(device: torch.device) -> str | None:
    """Why no Triton kernel runs on this device; None where they do."""
    if device.type == "cpu":
        return _why_not_interpret()
    if device.type != "cuda":
        return f"the kernels run on CUDA, and interpreted on the CPU, not on {device.type}"
    return _why_not_device(device.index)


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
    """``scale · S[M, R] · B[N, R]ᵀ``, written to `out`, or where `added` added to it."""
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

    Where `why_not_one_reading` gives a reason, by `lora_shrink` and `weight_grad`; `wanted` is as there.
    """
    if _runs_on_triton(g, b, s, out) and why_not_one_reading(g, b.shape[1], compute, wanted) is None:
        from optimized import kernels

        return kernels.shrink_and_grad(g, b, s, scale, compute, out, kept=kept)
    weight_grad(g, s, scale, compute, out, kept)
    return lora_shrink(g, b.mT, compute, kept)


def _runs_on_triton(*operands: Tensor) -> bool:
    """Whether Triton can, and autograd does not record, as it does in backward with `create_graph`."""
    recorded = torch.is_grad_enabled() and any(operand.requires_grad for operand in operands)
    return not recorded and why_not_triton(*operands) is None


def _wide(x: Tensor, compute: torch.dtype) -> Tensor:
    """x rounded to `compute`, in the dtype that sums are kept in."""
    x = x.to(compute)
    return x.float() if compute in (torch.float16, torch.bfloat16) else x


def _dropped(x: Tensor, kept: Kept | None) -> Tensor:
    return x if kept is None else torch.where(kept.mask(x.shape[0], x.shape[1], device=x.device) > 0, x, 0.0)


def _without_autocast(x: Tensor) -> AbstractContextManager[None]:
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def _why_not_tensor(operand: Tensor) -> str | None:
    if type(operand) not in (Tensor, torch.nn.Parameter) or operand.layout != torch.strided:
        return f"a {operand.layout} {type(operand).__name__} has no pointer and strides to give to a kernel"
    # a compiled layer reaches the kernels through a custom operator, which torch.func does not enter
    if not torch.compiler.is_compiling() and torch._C._functorch.is_functorch_wrapped_tensor(operand):
        return "torch.func transforms the products"
    if operand.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        return f"the kernels have no {operand.dtype}"
    return None


def _why_not_interpret() -> str | None:
    if os.environ.get("TRITON_INTERPRET", "").lower() not in ("1", "true", "on", "yes", "y"):
        return "the operands are on the CPU and TRITON_INTERPRET is not 1"
    return _why_interpreter_fails()


@functools.cache
def _why_interpreter_fails() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    import numpy as np
    import triton

    from optimized import kernels

    if not kernels.INTERPRETED:
        return "TRITON_INTERPRET was set after the kernels were imported"
    if _version(triton.__version__) < (3, 8) and _version(np.__version__) >= (2, 4):
        return f"the interpreter of triton {triton.__version__} does not work with numpy {np.__version__}"
    return None


@functools.cache
def _why_not_device(index: int) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if torch.version.hip is not None:
        return "the kernels are not tested on AMD GPUs"
    from optimized import kernels

    if kernels.INTERPRETED:
        return "the operands are on a GPU and the kernels are interpreted on the CPU"
    major, minor = torch.cuda.get_device_capability(index)
    return f"compute capability {major}.{minor} is below 8.0" if major < 8 else None


def _version(text: str) -> tuple[int, int]:
    major, minor = text.split(".")[:2]
    return int(major), int(minor)
