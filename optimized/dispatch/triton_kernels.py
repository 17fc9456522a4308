"""The choice whether Triton kernels run on given operands."""

import functools
import importlib.util
import os

import torch
from torch import Tensor

from reference import torch_internals


def why_not_triton(*operands: Tensor) -> str | None:
    """The reason why PyTorch, not Triton, multiplies these operands, or None if Triton does.

    Every product decides by this function alone, with its own operands.
    """
    if reason := next(filter(None, map(_why_not_tensor, operands)), None):
        return reason
    device = operands[0].device
    if device.type == "cuda" and any(operand.dtype == torch.float64 for operand in operands):
        return "float64 on a GPU is left to cuBLAS"
    return why_not_triton_on(device)


def why_not_triton_on(device: torch.device) -> str | None:
    """The reason why Triton kernels do not run on this device, or None if they do."""
    if device.type == "cpu":
        return _why_not_interpret()
    if device.type != "cuda":
        return f"the kernels run on CUDA, and interpreted on the CPU, not on {device.type}"
    return _why_not_device(device.index)


def _why_not_tensor(operand: Tensor) -> str | None:
    if type(operand) not in (Tensor, torch.nn.Parameter) or operand.layout != torch.strided:
        return f"a {operand.layout} {type(operand).__name__} has no pointer and strides to give to a kernel"
    # a compiled layer calls the kernels by a custom operator, which torch.func does not transform
    if not torch.compiler.is_compiling() and torch_internals.is_wrapped(operand):
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
