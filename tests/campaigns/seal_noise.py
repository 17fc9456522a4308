"""`python -m tests.campaigns.seal_noise`: the noise in a million results of the backend seal, and its bound."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from reference.encrypted import seal_library
from reference.encrypted.envelope import RESULT, SECRET, Envelope
from reference.encrypted.packed_noise import SEAL
from reference.encrypted.polynomial_layout import FIRST, Packing
from reference.encrypted.seal_backend import SealBackend

LIMIT, SIZE, Q, BITS = SEAL.largest_row, SEAL.polynomial_size, SEAL.modulus, SEAL.bits
STEP = Q / 2**BITS
"""Noise below half of it is rounded away."""


@dataclass(frozen=True)
class Measured:
    """The noise of one product: its results, and the worst of them.

    Attributes:
        of_bound: the largest noise over the bound of its row; for outputs that share a polynomial, over the room.
        of_half: the largest noise over half a step of the plaintext, where results turn wrong.
        std, law: the deviation of the noise, and what its variance should be, in units of q's integers.
    """

    name: str
    packing: Packing
    results: int
    wrong: int
    of_bound: float
    of_half: float
    std: float
    law: float


def products(most: int) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Inputs and weights by name: every packing, random and extreme values, with at most so many results each."""
    generator = torch.Generator().manual_seed(0)

    def drawn(m: int, k: int, n: int, low: int, high: int) -> tuple[Tensor, Tensor]:
        n = max(1, min(n, most // m))
        q = torch.randint(0, 256, (m, k), generator=generator)
        return q, torch.randint(low, high + 1, (n, k), generator=generator)

    for m, k, n in ((2048, 512, 100), (2048, 3, 100), (700, 512, 200), (64, 512, 512), (16, 384, 2000), (1, 512, 2048)):
        yield f"{m}·{k}·{n}, random 8 bits", *drawn(m, k, n, -128, 127)
    for m, k, n in ((2048, 512, 60), (64, 512, 300), (1, 512, 2048)):
        _, weight = drawn(m, k, n, 0, 0)
        yield f"{m}·{k}·{n}, all 255 · -128", torch.full((m, k), 255), weight - 128
    for m, k, n in ((2048, 4, 60), (2048, 300, 60), (1100, 41, 100)):
        q, weight = drawn(m, k, n, 0, 0)
        weight += LIMIT // k
        weight[:, 0] += LIMIT - weight.sum(1)
        weight[:, 1::2] *= -1
        yield f"{m}·{k}·{n}, rows at the limit {LIMIT}", q, weight
    q, weight = drawn(2048, 64, 60, -1, 1)
    yield "2048·64·60, weights -1, 0, 1 and largest inputs", q * 0 + 2**19, weight
    yield "2048·64·4, zeros", q * 0, weight[:4] * 0


def measured(name: str, q: Tensor, weight: Tensor) -> Measured:
    """Encrypt, multiply, and measure the noise of every result before it is rounded."""
    backend = SealBackend()
    keys = backend.keygen()
    answer = backend.evaluate(backend.encrypt(q, keys, outputs=len(weight)), weight, keys.evaluation)
    sealed = Envelope.open(answer, RESULT, SEAL)
    packing = Packing.read(sealed.contents[: Packing.HEADER], SIZE)
    number, places = -(-len(weight) // packing.outputs), packing.places().flatten()
    _, (block,) = backend._opened(sealed, number, 5, number * packing.outputs * packing.rows * FIRST)
    pairs = torch.from_numpy(backend._restored(block, number, places).view(np.int64))
    phases = phase(pairs, secret_of(keys.secret))[:, places].view(number, packing.outputs, packing.rows)
    half = 1 << BITS - 1
    exact = q @ weight.T
    noise = distance(packing.outcome(phases, len(q), len(weight)), exact)
    wrong = (backend.decrypt(answer, len(q), len(weight), keys) != (exact + half) % (2 * half) - half).sum()
    sums = weight.abs().sum(1)
    groups = torch.split(weight.double().square().sum(1), packing.outputs)
    squares = torch.cat([group.sum().expand(len(group)) for group in groups])
    dropped = STEP / 2 - SEAL.room
    bound = 21.5 * sums + dropped if packing.outputs == 1 else SEAL.room + dropped + 0 * sums
    law = (10.5 + 1 / 12) * squares + 4.0 ** SEAL.dropped[0] / 12 + (2 * SIZE / 3) * 4.0 ** SEAL.dropped[1] / 12
    return Measured(
        name,
        packing,
        noise.numel(),
        int(wrong),
        float((noise.abs() / bound).max()),
        float(noise.abs().max() / (STEP / 2)),
        float(noise.square().mean().sqrt()),
        float(law.mean().sqrt()),
    )


def secret_of(secret: bytes) -> Tensor:
    """The coefficients of a secret key, int64 [n], from the decryption of q/t at the place of the key."""
    library = seal_library.opened(SIZE, Q, BITS)
    key = library.key_from(Envelope.open(secret, SECRET, SEAL).contents)
    ciphertext = np.zeros((2, SIZE), np.uint64)
    ciphertext[1, 0] = round(STEP)
    values = torch.from_numpy(library.decryptor(key)(ciphertext).astype(np.int64))
    values[values > 1 << BITS - 1] -= 1 << BITS
    assert set(values.tolist()) == {-1, 0, 1}
    return values


def phase(pairs: Tensor, secret: Tensor) -> Tensor:
    """``c0 + c1·s`` modulo q, exactly: int64 [number, 2, n] → [number, n]."""
    n = len(secret)
    shift = torch.arange(n)[None] - torch.arange(n)[:, None]  # row i: X^i·s
    moved = torch.where(shift >= 0, secret[shift % n], -secret[shift % n]).double()
    high, low = (pairs[:, 1] >> 26).double(), (pairs[:, 1] & (1 << 26) - 1).double()
    high, low = (high @ moved).long() % Q, (low @ moved).long()
    for _ in range(26):
        high = high * 2 % Q
    return (pairs[:, 0] + high + low) % Q


def distance(phases: Tensor, exact: Tensor) -> Tensor:
    """``phase - q·m/t`` for the exact results m, float64, from -q/2 to q/2."""
    m = exact % (1 << BITS)
    low = (Q & (1 << BITS) - 1) * m
    whole = (Q >> BITS) * m + (low >> BITS)
    off = (phases - whole) % Q
    off = torch.where(off > Q // 2, off - Q, off)
    return off.double() - (low & (1 << BITS) - 1).double() / 2**BITS


def main(arguments: list[str] | None = None) -> int:
    """Print a line for each product and the worst of all. Returns 1 if a result is wrong or beyond its bound."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--most", type=int, default=125_000, help="results of each product (default 125000)")
    options = parser.parse_args(arguments)
    found = []
    for product in products(options.most):
        found.append(measured(*product))
        each = found[-1]
        packed = f"{each.packing.features} features up, {each.packing.outputs} outputs down"
        print(
            f"{each.name} ({packed}): {each.results} results, {each.wrong} wrong, {each.of_bound:.3f} of the bound, "
            f"{each.of_half:.3f} of half a step, deviation {each.std:.0f} (law {each.law:.0f})",
            flush=True,
        )
    total, wrong = sum(each.results for each in found), sum(each.wrong for each in found)
    worst = max(each.of_bound for each in found)
    print(f"{total} results, {wrong} wrong; the worst noise is {worst:.3f} of its bound")
    return int(wrong > 0 or worst > 1)


if __name__ == "__main__":
    sys.exit(main())
