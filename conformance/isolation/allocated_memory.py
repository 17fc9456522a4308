"""The bytes that this process has allocated, whoever asked for them: torch, NumPy or a library in C."""

from __future__ import annotations

import ctypes
from typing import Any

import torch


class _Mallinfo(ctypes.Structure):
    """The result of glibc's mallinfo2; two of its ten numbers are read."""

    _fields_ = [
        *((f"before_{i}", ctypes.c_size_t) for i in range(4)),
        ("hblkhd", ctypes.c_size_t),  # bytes in mappings of their own
        *((f"between_{i}", ctypes.c_size_t) for i in range(2)),
        ("uordblks", ctypes.c_size_t),  # bytes in use in the arenas
        *((f"after_{i}", ctypes.c_size_t) for i in range(2)),
    ]


def allocated() -> int:
    """Bytes allocated by malloc and on the GPU; a C library without mallinfo2 counts as 0."""
    cuda: Any = torch.cuda
    on_gpu = int(cuda.memory_allocated()) if cuda.is_initialized() else 0
    read: Any = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if read is None:
        return on_gpu
    read.restype = _Mallinfo
    found = read()
    return int(found.uordblks) + int(found.hblkhd) + on_gpu
