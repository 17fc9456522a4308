"""Known-bad twins of what surrounds a call: settings, patches, leaks, results kept by address, far offsets."""

from __future__ import annotations

import ctypes
import os
import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.baselines.linear import Right
from tests.known_bad import both


def changing(
    clause: str,
    defect: str,
    says: str,
    change: Callable[[], Any],
    *,
    backward: bool = False,
    dtypes: tuple[str, ...] = ("float32", "bfloat16"),
) -> None:
    """Register a twin that does something to the whole process in its forward or its backward pass."""

    class Changes(Right):
        def base(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            if not backward:
                change()
            return super().base(x, weight, bias)

        def update(self, x: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
            if not backward:
                change()
            return super().update(x, lora_A, lora_B, scale)

        def gradient_of_lora_B(self, g: Tensor, x: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
            found = super().gradient_of_lora_B(g, x, lora_A, lora_B, scale)
            if backward:  # last, so that it changes no number of this call
                change()
            return found

    Changes.__name__ = Changes.__qualname__ = defect
    globals()[defect] = Changes  # where pickle looks for it
    both(clause, says=says, dtypes=dtypes)(Changes)


def multiply_with_tf32() -> None:
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


def raise_on_overflow() -> None:
    np.seterr(over="raise")


def mark_the_environment() -> None:
    os.environ["TWIN_WAS_HERE"] = "1"


def multiply_by_another_function() -> None:
    torch.allclose = torch.is_same_size


def compare_by_another_method() -> None:
    torch.Tensor.__eq__ = torch.Tensor.__ge__


def limit_the_random_numbers() -> None:
    random.seed(1)


for defect, says, change in (
    ("SetsTheDefaultDtype", "default dtype from torch.float32", lambda: torch.set_default_dtype(torch.float64)),
    ("SetsReducedSums", "reduced precision in bfloat16 sums from True", multiply_with_tf32),
    ("SetsTheThreads", "number of threads", lambda: torch.set_num_threads(3)),
    ("SetsDeterminism", "deterministic algorithms", lambda: torch.set_deterministic_debug_mode(2)),
    ("FlushesSubnormals", "the flushing of subnormals from False", lambda: torch.set_flush_denormal(True)),
    ("DetectsAnomalies", "anomaly detection", lambda: torch.set_anomaly_enabled(True)),
    ("RaisesOnOverflow", "NumPy's error handling: over", raise_on_overflow),
    ("SilencesWarnings", "filters of warnings", lambda: warnings.simplefilter("ignore", UserWarning)),
    ("MarksTheEnvironment", "environment: TWIN_WAS_HERE", mark_the_environment),
    ("DrawsFromTorch", "the forward pass changed torch's random state", lambda: torch.rand(1)),
    ("DrawsFromNumPy", "NumPy's random state", lambda: np.random.rand(1)),
    ("SeedsPython", "Python's random state", limit_the_random_numbers),
):
    changing("SIDE-GLOBAL", defect, says, change)
changing(
    "SIDE-GLOBAL",
    "SetsThePrecision",
    "the backward pass changed the precision of float32",
    lambda: torch.set_float32_matmul_precision("medium"),
    backward=True,
    dtypes=("bfloat16",),  # where it changes no number, whatever the processor
)
changing(
    "SIDE-GLOBAL", "SeedsInBackward", "the backward pass changed torch's random", lambda: torch.rand(1), backward=True
)
changing("SIDE-PATCH", "ReplacesAFunction", "torch.allclose", multiply_by_another_function)
changing("SIDE-PATCH", "ReplacesAMethod", "torch.Tensor.__eq__", compare_by_another_method, backward=True)


@both("MEM-LEAK", says="live tensors", source="a list of what was seen")
class KeepsEveryInput(Right):
    def reset(self) -> None:
        self.seen: list[Tensor] = []

    def update(self, x: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
        if not hasattr(self, "seen"):
            self.reset()
        self.seen.append(x.detach().flatten()[:1].clone())  # all of it would be gigabytes, where rows lie far apart
        return super().update(x, lora_A, lora_B, scale)


@both("MEM-LEAK", says="objects", source="a cache keyed by the number of the call")
class CountsItsCalls(Right):
    def reset(self) -> None:
        self.seen: dict[Any, Any] = {}

    def update(self, x: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
        if not hasattr(self, "seen"):
            self.reset()
        self.seen[f"call {len(self.seen)}"] = [list(x.shape) for _ in range(8)]
        return super().update(x, lora_A, lora_B, scale)


@both("MEM-LEAK", says="bytes", source="a workspace of a C extension that is never freed")
class NeverFrees(Right):
    def update(self, x: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
        ctypes.CDLL(None).malloc(4096)
        return super().update(x, lora_A, lora_B, scale)


@both("MEM-LATER", says="worst    y", source="an output buffer that is used again")
class ReturnsItsBuffer(Right):
    def reset(self) -> None:
        self.buffers: dict[Any, Tensor] = {}

    def total(self, base: Tensor, update: Tensor) -> Tensor:
        if not hasattr(self, "buffers"):
            self.reset()
        buffer = self.buffers.setdefault((base.shape, base.dtype), torch.empty_like(base))
        return buffer.data.copy_(super().total(base, update))


@both("MEM-LATER", says="worst    d", source="an intermediate kept for backward in a buffer that is used again")
class KeepsOnlyTheLastInput(Right):
    def update(self, x: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
        self.last = x.detach()
        return super().update(x, lora_A, lora_B, scale)

    def gradient_of_lora_A(self, g: Tensor, x: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
        last = self.last if self.last.shape == x.shape else x
        return super().gradient_of_lora_A(g, last.to(x.dtype), lora_A, lora_B, scale)


@both("MEM-REFILL", says="worst    y", source="results cached by data pointer")
class RemembersByAddress(Right):
    def reset(self) -> None:
        self.known: dict[Any, tuple[Any, Tensor]] = {}

    def update(self, x: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
        if not hasattr(self, "known"):
            self.reset()
        key = (x.data_ptr(), lora_A.data_ptr(), lora_B.data_ptr(), x.shape, lora_B.shape, scale, x.dtype)
        if key not in self.known:  # what it was computed from is held, so that no other gets the address
            self.known[key] = (x, lora_A, lora_B), super().update(x, lora_A, lora_B, scale)
        return self.known[key][1]


@both("MEM-REFILL", says="worst    y", source="a product of the adapters that is kept while they are trained")
class KeepsTheProduct(Right):
    def update(self, x: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
        if not hasattr(lora_B, "product"):
            lora_B.product = lora_B.detach() @ lora_A.detach()
        return x @ lora_B.product.to(x.dtype).T * scale


def wrapped(matrix: Tensor) -> Tensor:
    """The matrix as offsets of 31 bits would read it: rows beyond that come from the start of its memory."""
    rows = torch.arange(matrix.shape[0])[:, None] * matrix.stride(0)
    offsets = rows + torch.arange(matrix.shape[1])[None, :] * matrix.stride(1)
    if offsets.numel() == 0 or int(offsets.max()) < 2**31:
        return matrix
    return matrix.as_strided((2**31,), (1,), matrix.storage_offset())[offsets % 2**31]


@both("MEM-FAR", says="worst    y", source="linkedin/Liger-Kernel #1248, fla-org/flash-linear-attention #1080 (MK4)")
class WrapsOffsetsInX(Right):
    def base(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super().base(wrapped(x), weight, bias)

    def update(self, x: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
        return super().update(wrapped(x), lora_A, lora_B, scale)


@both("MEM-FAR", says="worst    dB", source="linkedin/Liger-Kernel #1248, fla-org/flash-linear-attention #1080 (MK4)")
class WrapsOffsetsInG(Right):
    def gradient_of_lora_B(self, g: Tensor, x: Tensor, lora_A: Tensor, lora_B: Tensor, scale: float) -> Tensor:
        return super().gradient_of_lora_B(wrapped(g), x, lora_A, lora_B, scale)
