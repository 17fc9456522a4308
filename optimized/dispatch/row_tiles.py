"""The choice of Triton kernels for rows that choose their expert or adapter."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

from optimized.dispatch.triton_kernels import why_not_triton
from optimized.matrices import autocast_dtype

MOST_TILED_RANK = 32  # a tile covers the whole rank, and at 64 compiled tiles spill registers
_wanted: ContextVar[bool] = ContextVar("tiles wanted on a CPU", default=False)


def why_not_tiled(x: Tensor, weight: Tensor | None, bias: Tensor | None, lora_A: Tensor, lora_B: Tensor) -> str | None:
    """The reason to multiply by torch's products, or None for the Triton kernels over tiles of rows.

    Dropout is no reason here: its nodes draw their masks without the kernels, and are chosen before.
    """
    rank = lora_A.shape[1]
    if not 0 < rank <= MOST_TILED_RANK:
        return f"a tile covers the whole rank, of 1 to {MOST_TILED_RANK}, and this is {rank}"
    if x.is_cpu and not _wanted.get():
        return "interpreted kernels are not faster"
    if autocast_dtype(x) is not None:
        return "autocast chooses the dtype of each product"
    given = [t for t in (x, weight, bias, lora_A, lora_B) if t is not None]
    if any(t.dtype != x.dtype for t in given):
        return "the kernels multiply operands of one dtype"
    return why_not_triton(*given)


@contextmanager
def tiles_wanted() -> Iterator[None]:
    """A region in which the kernels run interpreted on a CPU, where they are for tests alone."""
    token = _wanted.set(True)
    try:
        yield
    finally:
        _wanted.reset(token)
