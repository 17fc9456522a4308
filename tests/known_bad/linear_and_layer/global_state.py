"""Known-bad twins of global state: a call changes the process, keeps memory, or trusts an address."""

from __future__ import annotations

import ctypes
import os
import random
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.baselines.linear import BackwardOperands, Right, UpdateOperands
from tests.known_bad import breaks

SIDE_GLOBAL = ("LIN-SIDE-GLOBAL", "LAY-SIDE-GLOBAL")
SIDE_PATCH = ("LIN-SIDE-PATCH", "LAY-SIDE-PATCH")


def changing(
    clauses: tuple[str, ...],
    defect: str,
    says: str,
    change: Callable[[], Any],
    *,
    backward: bool = False,
    dtypes: tuple[str, ...] = ("float32", "bfloat16"),
) -> None:
    """Register a twin that calls `change` in its forward or backward pass and so changes global state."""

    class Changes(Right):
        def base(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            if not backward:
                change()
            return super().base(x, weight, bias)

        def update(self, o: UpdateOperands) -> Tensor:
            if not backward:
                change()
            return super().update(o)

        def gradient_of_lora_B(self, o: BackwardOperands) -> Tensor:
            found = super().gradient_of_lora_B(o)
            if backward:  # last, so that it does not affect this call's results
                change()
            return found

    Changes.__name__ = Changes.__qualname__ = defect
    globals()[defect] = Changes  # pickle looks the class up here
    breaks(*clauses, says=says, dtypes=dtypes)(Changes)


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
    changing(SIDE_GLOBAL, defect, says, change)
changing(
    SIDE_GLOBAL,
    "SetsThePrecision",
    "the backward pass changed the precision of float32",
    lambda: torch.set_float32_matmul_precision("medium"),
    backward=True,
    dtypes=("bfloat16",),  # it changes no bfloat16 result on any processor
)
changing(
    SIDE_GLOBAL, "SeedsInBackward", "the backward pass changed torch's random", lambda: torch.rand(1), backward=True
)
changing(SIDE_PATCH, "ReplacesAFunction", "torch.allclose", multiply_by_another_function)
changing(SIDE_PATCH, "ReplacesAMethod", "torch.Tensor.__eq__", compare_by_another_method, backward=True)


@breaks("LIN-MEM-LEAK", "LAY-MEM-LEAK", says="live tensors", source="a list of all inputs")
class KeepsEveryInput(Right):
    def reset(self) -> None:
        self.seen: list[Tensor] = []

    def update(self, o: UpdateOperands) -> Tensor:
        if not hasattr(self, "seen"):
            self.reset()
        self.seen.append(o.x.detach().flatten()[:1].clone())  # a whole x with distant rows would take gigabytes
        return super().update(o)


@breaks("LIN-MEM-LEAK", "LAY-MEM-LEAK", says="objects", source="a cache keyed by the number of the call")
class CountsItsCalls(Right):
    def reset(self) -> None:
        self.seen: dict[Any, Any] = {}

    def update(self, o: UpdateOperands) -> Tensor:
        if not hasattr(self, "seen"):
            self.reset()
        self.seen[f"call {len(self.seen)}"] = [list(o.x.shape) for _ in range(8)]
        return super().update(o)


@breaks("LIN-MEM-LEAK", "LAY-MEM-LEAK", says="bytes", source="a workspace of a C extension that is never freed")
class NeverFrees(Right):
    def update(self, o: UpdateOperands) -> Tensor:
        ctypes.CDLL(None).malloc(4096)
        return super().update(o)


def wrapped(matrix: Tensor) -> Tensor:
    """Read a matrix with offsets modulo 2³¹: elements beyond come from the start of its memory."""
    rows = torch.arange(matrix.shape[0])[:, None] * matrix.stride(0)
    offsets = rows + torch.arange(matrix.shape[1])[None, :] * matrix.stride(1)
    if offsets.numel() == 0 or int(offsets.max()) < 2**31:
        return matrix
    return matrix.as_strided((2**31,), (1,), matrix.storage_offset())[offsets % 2**31]


@breaks(
    "LIN-MEM-FAR",
    "LAY-MEM-FAR",
    says="worst    y",
    source="linkedin/Liger-Kernel #1248, fla-org/flash-linear-attention #1080 (MK4)",
)
class WrapsOffsetsInX(Right):
    def base(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super().base(wrapped(x), weight, bias)

    def update(self, o: UpdateOperands) -> Tensor:
        return super().update(replace(o, x=wrapped(o.x)))


@breaks(
    "LIN-MEM-FAR",
    "LAY-MEM-FAR",
    says="worst    dB",
    source="linkedin/Liger-Kernel #1248, fla-org/flash-linear-attention #1080 (MK4)",
)
class WrapsOffsetsInG(Right):
    def gradient_of_lora_B(self, o: BackwardOperands) -> Tensor:
        return super().gradient_of_lora_B(replace(o, g_adapter=wrapped(o.g_adapter)))
