"""The minimal work of a step: the formula's operations, and one read or write of each operand per pass."""

from __future__ import annotations

from dataclasses import dataclass, replace

from conformance.bench.cases import Size


@dataclass(frozen=True)
class Work:
    """Floating-point operations and bytes of a forward or a backward pass."""

    flops: int
    bytes: int


def frozen(size: Size, width: int) -> tuple[Work, Work]:
    """The frozen layer's work: forward ``y = x Wᵀ + b``, backward ``dX = g W``; `width` is the bytes of an element."""
    M, K, N = size.m, size.k, size.n
    weights = N * K * max(size.experts, 1)
    forward = Work(2 * M * K * N, width * (M * K + weights + N + M * N))
    backward = Work(2 * M * K * N, width * (M * N + weights + M * K))
    return forward, backward


def adapted(size: Size, width: int, adapters: int = 1) -> tuple[Work, Work]:
    """The work with an adapter: also ``S = x Aᵀ, S Bᵀ``, and backward ``g B, (g B) A, dA = (g B)ᵀ x, dB = gᵀ S``.

    S counts as staying on the chip; backward reads x again, for dA. Each row has one of several adapters.
    """
    M, K, N, r = size.m, size.k, size.n, size.r
    forward, backward = frozen(size, width)
    adapter, copies = r * (K + N), max(size.experts, adapters)
    return (
        Work(forward.flops + 2 * M * adapter, forward.bytes + width * adapter * copies),
        Work(backward.flops + 4 * M * adapter, backward.bytes + width * (M * K + 2 * adapter * copies)),
    )


Passes = tuple[Work, Work]


def modules(size: Size, width: int, slots: int) -> tuple[Passes, Passes]:
    """The work of a frozen and of an adapted module of experts: two projections, of K to 2N and of N to K features.

    Each of the tokens' `slots` is a row. The gate's work is left out.
    """
    rows = size.m * slots
    up, down = replace(size, m=rows, n=2 * size.n), replace(size, m=rows, k=size.n, n=size.k)
    return _both(frozen(up, width), frozen(down, width)), _both(adapted(up, width), adapted(down, width))


def _both(one: Passes, other: Passes) -> Passes:
    forward, backward = (Work(a.flops + b.flops, a.bytes + b.bytes) for a, b in zip(one, other, strict=True))
    return forward, backward
