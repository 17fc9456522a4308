"""The elements that dropout keeps, from a counter: what the kernels compute wherever they read or write them.

Nothing is stored: an element's 16 random bits are a function of the seed, its row and its column, so that every kernel
and every tile finds the same ones. Eight columns share one call of Philox, whose counter is (column // 8, row, 0, 0):
two numbers of 32 bits, which no matrix outgrows. The first and most of the second round then depend on a row or a
column alone, and are shared by a tile's columns or rows.

Seven rounds are the fewest that pass TestU01's BigCrush; ten are customary where numbers decide more than what is
dropped. Source: Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3 (2011).
"""

from typing import NamedTuple

import torch
from torch import Tensor

ROUNDS = 7
LANES = 8  # of 16 bits: the columns that one call decides
_WORD = 0xFFFFFFFF


class Kept(NamedTuple):
    """Which elements of a matrix are kept: those whose 16 random bits, of this seed, lie below `limit` < 2¹⁶."""

    seed: int
    limit: int

    def mask(self, rows: int, columns: int, *, device: torch.device | None = None) -> Tensor:
        """uint8 [rows, columns], 1 where kept; by PyTorch, for what kernels do not compute."""
        groups = torch.arange(-(-columns // LANES), device=device)
        down = torch.arange(rows, device=device)
        zero = torch.zeros((), dtype=torch.int64, device=device)
        words = philox(self.seed, (groups[None, :], down[:, None], zero, zero))
        lanes = torch.stack(words, -1).to(torch.int32).view(torch.int16) ^ -(2**15)  # signed, in the order of unsigned
        kept = lanes < self.limit - 2**15
        return kept.to(torch.uint8).view(rows, groups.numel() * LANES)[:, :columns].contiguous()


def philox(seed: int, counter: tuple[Tensor, ...], rounds: int = ROUNDS) -> tuple[Tensor, ...]:
    """Philox4x32: four words from a counter of four words, whose shapes are broadcast; of 32 bits, in int64."""
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
