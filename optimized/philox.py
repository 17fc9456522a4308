"""Dropout masks from a counter-based generator; the kernels compute an element's bits wherever they need them.

No mask is stored. The 16 random bits of an element are a function of the seed, its row and its column, so that all
kernels and tiles agree. Eight columns share one call of Philox with the counter (column // 8, row, 0, 0): two 32-bit
numbers, which are large enough for any matrix. The first round and most of the second depend only on a row or only on
a column, so the columns or rows of a tile share them.

Seven rounds are the fewest that pass TestU01's BigCrush; ten are customary, but dropout needs no safety margin.
Source: Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3 (2011).
"""

from typing import NamedTuple

import torch
from torch import Tensor

ROUNDS = 7
LANES = 8  # columns per call, 16 bits each
_WORD = 0xFFFFFFFF


class Kept(NamedTuple):
    """A dropout mask: it keeps the elements whose 16 random bits, from `seed`, are below `limit` < 2¹⁶."""

    seed: int
    limit: int

    def mask(self, rows: int, columns: int, *, device: torch.device | None = None) -> Tensor:
        """The mask by PyTorch: uint8 [rows, columns], 1 for a kept element."""
        groups = torch.arange(-(-columns // LANES), device=device)
        down = torch.arange(rows, device=device)
        zero = torch.zeros((), dtype=torch.int64, device=device)
        words = philox(self.seed, (groups[None, :], down[:, None], zero, zero))
        lanes = torch.stack(words, -1).to(torch.int32).view(torch.int16) ^ -(2**15)  # signed, in unsigned order
        kept = lanes < self.limit - 2**15
        return kept.to(torch.uint8).view(rows, groups.numel() * LANES)[:, :columns].contiguous()


def philox(seed: int, counter: tuple[Tensor, ...], rounds: int = ROUNDS) -> tuple[Tensor, ...]:
    """Philox4x32: four 32-bit words from a counter of four words, all in int64; the words are broadcast."""
    key_a, key_b = seed & _WORD, seed >> 32
    words: tuple[Tensor, ...] = torch.broadcast_tensors(*counter)  # type: ignore[no-untyped-call]
    for _ in range(rounds):
        product_a, product_b = words[0] * 0xD2511F53, words[2] * 0xCD9E8D57  # the signed overflow is two's complement
        words = (
            product_b >> 32 & _WORD ^ words[1] ^ key_a,
            product_b & _WORD,
            product_a >> 32 & _WORD ^ words[3] ^ key_b,
            product_a & _WORD,
        )
        key_a, key_b = key_a + 0x9E3779B9 & _WORD, key_b + 0xBB67AE85 & _WORD
    return words
