"""Dropout of the adapter path from a seed: the mask is saved as bits, drawn again, or computed from a counter."""

import functools
from typing import NamedTuple, Self, TypeVar

import torch
from torch import Tensor

from optimized.philox import Kept

_LANE = 2**16  # the values of the 16 random bits that decide one element
_GATHER_BITS = 0x0102040810204080  # this times eight bytes of 0 or 1 collects their bits in the top byte

Mask = TypeVar("Mask", Tensor, Kept)


class Dropout(NamedTuple):
    """The dropout that forward and backward share: rate, position (on x or on the update) and seed of the mask."""

    rate: float
    on_input: bool = False
    seed: int = 0

    @classmethod
    def seeded(cls, rate: float, position: str) -> Self:
        """The dropout of one forward pass, seeded by PyTorch's global CPU generator.

        `torch.manual_seed` thus determines the mask, and checkpointing, which restores that generator, repeats it.
        """
        seed = 0 if rate == 1.0 else int(torch.randint(2**62, (), device="cpu").item())
        return cls(rate, position == "pre", seed)

    def draw(self, rows: int, lora_A: Tensor, lora_B: Tensor) -> Tensor | None:
        """The mask, uint8 [M, K] or [M, N], 1 for a kept element; None if the rate is 0 or 1."""
        if self.rate in (0.0, 1.0):
            return None
        return draw_mask(self._shape(rows, lora_A, lora_B), 1.0 - self.rate, self.seed, lora_A.device)

    def restore(self, bits: Tensor | None, rows: int, lora_A: Tensor, lora_B: Tensor) -> Tensor | None:
        """The mask of `draw`, from its bits or, without bits, from the seed."""
        if bits is None:
            return self.draw(rows, lora_A, lora_B)
        return unpack(bits, self._shape(rows, lora_A, lora_B))

    def split(self, mask: Mask | None) -> tuple[Mask | None, Mask | None]:
        """The mask of x and the mask of the update; one of them is None."""
        return (mask, None) if self.on_input else (None, mask)

    def _shape(self, rows: int, lora_A: Tensor, lora_B: Tensor) -> tuple[int, int]:
        return (rows, lora_A.shape[1] if self.on_input else lora_B.shape[0])


NO_DROPOUT = Dropout(0.0)


class CountedDropout(Dropout):
    """Dropout whose mask is a function of the position; kernels compute it, or PyTorch if they cannot run."""

    @property
    def kept(self) -> Kept | None:
        """The kept elements; None if all are kept, or if no update is computed."""
        limit = _limit(1.0 - self.rate, self.seed)
        return None if self.rate in (0.0, 1.0) or limit >= _LANE else Kept(self.seed, limit)

    def draw(self, rows: int, lora_A: Tensor, lora_B: Tensor) -> Tensor | None:
        """As in `Dropout`."""
        kept = self.kept
        return None if kept is None else kept.mask(*self._shape(rows, lora_A, lora_B), device=lora_A.device)


def draw_mask(shape: tuple[int, int], keep: float, seed: int, device: torch.device) -> Tensor:
    """A mask of independent elements, 1 with probability `keep`, else 0: uint8 `shape`, determined by the seed.

    An element is kept if its 16 random bits are below ``⌊2¹⁶·keep + u⌋``. The number u is uniform in [0, 1) and shared
    by the mask, so that the probability is exactly `keep`. On a CPU this takes a sixth of the time of ``bernoulli_``,
    which draws a whole number for each element.
    """
    size = shape[0] * shape[1]
    padded = -(-size // 8) * 8  # whole groups of eight elements, for `pack`
    generator = torch.Generator(device).manual_seed(seed)
    lanes = torch.empty(padded // 4, dtype=torch.int64, device=device)
    lanes.random_(-(2**63), None, generator=generator)
    limit = _limit(keep, seed)
    mask = torch.empty(padded, dtype=torch.uint8, device=device)
    if limit >= _LANE:
        mask.fill_(1)
    else:
        torch.lt(lanes.view(torch.int16), limit - _LANE // 2, out=mask)
    return mask[:size].view(shape)


def _limit(keep: float, seed: int) -> int:
    """``⌊2¹⁶·keep + u⌋``, with u from the upper half of the seed; the CPU's generator uses only the lower half."""
    return int(_LANE * keep + (seed >> 32) / 2**30)


def pack(mask: Tensor) -> Tensor:
    """A mask of `draw_mask` with one bit per element: uint8 [⌈size/8⌉]."""
    groups = mask.as_strided((-(-mask.numel() // 8) * 8,), (1,)).view(torch.int64)
    return (groups * _GATHER_BITS).view(torch.uint8)[7::8].contiguous()


def unpack(bits: Tensor, shape: tuple[int, int]) -> Tensor:
    """The inverse of `pack`: uint8 `shape`, 1 for a kept element."""
    groups = _bytes_of_bits(bits.device).index_select(0, bits.to(torch.int32))
    return groups.view(torch.uint8)[: shape[0] * shape[1]].view(shape)


@functools.cache
def _bytes_of_bits(device: torch.device) -> Tensor:
    """The eight bits of each byte value as eight bytes: int64 [256]."""
    bits = torch.arange(256, device=device).unsqueeze(1) >> torch.arange(8, device=device) & 1
    return bits.to(torch.uint8).view(torch.int64).flatten()
