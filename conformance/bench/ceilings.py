"""The measured ceilings of a device: FLOP/s of a large product in each dtype, bytes/s of a large copy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from conformance.bench.clock import fastest
from conformance.bench.work import Work
from conformance.numerics.formats import dtype_named

PRODUCT = {"cpu": 2048, "cuda": 8192}  # M = K = N
COPIED = {"cpu": 2**28, "cuda": 2**30}  # bytes, more than a cache holds
DURATION = 2.0  # seconds for each


@dataclass(frozen=True)
class Ceilings:
    """The highest measured rates.

    Attributes:
        flops: FLOP/s by dtype.   bytes: bytes/s, read and written.
        product: M = K = N of the measured product.   copied: bytes of the copied tensor.
    """

    flops: dict[str, float]
    bytes: float
    product: int
    copied: int

    def least_seconds(self, passes: Sequence[Work], dtype: str) -> float:
        """The roofline time: the sum over passes of the larger of FLOP ÷ FLOP/s and bytes ÷ bytes/s."""
        return sum(max(work.flops / self.flops[dtype], work.bytes / self.bytes) for work in passes)


def measured(dtypes: Iterable[str], device: str, duration: float = DURATION) -> Ceilings:
    """Measure the ceilings of a device."""
    kind = device.partition(":")[0]
    size, count = PRODUCT[kind], COPIED[kind]
    flops = {}
    for name in dtypes:
        a, b = (torch.randn(size, size, dtype=dtype_named(name), device=device) for _ in range(2))
        flops[name] = 2 * size**3 / fastest(lambda a=a, b=b: a @ b, device, duration)  # type: ignore[misc]
    source = torch.ones(count, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return Ceilings(flops, 2 * count / fastest(lambda: target.copy_(source), device, duration), size, count)
