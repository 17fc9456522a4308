"""The measured sizes: M tokens, K input features, N output features, rank r. This module imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

MODEL_SIZES = ((1024, 1024), (4096, 4096), (4096, 14336), (14336, 4096))  # K, N of a small and a large model's layers


@dataclass(frozen=True)
class Size:
    """One size, printed as `512x1024x1024 r16`, with experts as `512x256x256 r8 e8`; 0 experts are a linear layer."""

    m: int
    k: int
    n: int
    r: int
    experts: int = 0

    def __str__(self) -> str:
        return f"{self.m}x{self.k}x{self.n} r{self.r}" + (f" e{self.experts}" if self.experts else "")


CPU = (Size(64, 256, 256, 8), Size(512, 1024, 1024, 16))
EXPERTS = (Size(512, 256, 256, 8), Size(1024, 512, 512, 16))  # with as many experts as are asked for
GPU = tuple(Size(m, k, n, r) for (k, n), m, r in product(MODEL_SIZES, (256, 1024, 4096, 16384), (8, 16, 64, 128)))


def sizes(
    shapes: Sequence[tuple[int, int, int]], ranks: Sequence[int], device: str, experts: int = 0
) -> tuple[Size, ...]:
    """Every shape with every rank: by default the device's shapes and rank 16, or the default set without either."""
    if experts:
        linear = sizes(shapes, ranks, device) if shapes or ranks else EXPERTS
        return tuple(replace(size, experts=experts) for size in linear)
    default = CPU if device == "cpu" else GPU
    if not shapes and not ranks:
        return default
    wanted = shapes or [(size.m, size.k, size.n) for size in default]
    return tuple(dict.fromkeys(Size(*shape, r) for shape in wanted for r in ranks or (16,)))


def shape(text: str) -> tuple[int, int, int]:
    """M, K and N of `MxKxN` or `M,K,N`.

    Raises:
        ValueError: if the text has another form, or a size is less than 1.
    """
    words = text.replace(",", "x").split("x")
    numbers = [int(word) for word in words if word.isdecimal()]
    if len(words) != 3 or len(numbers) != 3 or min(numbers) < 1:
        raise ValueError(f"shape {text!r}: expected MxKxN or M,K,N, for example 64x256x256")
    return numbers[0], numbers[1], numbers[2]
