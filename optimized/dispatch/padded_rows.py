"""The choice between batched products over padded groups of rows and a product for each group."""

import torch
from torch import Tensor

from optimized.matrices import autocast_dtype
from optimized.padded_rows import counts_of

MOST_PLACES = 1.5
"""The largest number of places for each row. With 8 experts and 512 rows that choose at random there are 1.3."""


def why_not_padded(ends: list[int], scale: float, x: Tensor, *parameters: Tensor | None) -> str | None:
    """The reason to multiply the rows of each expert with their adapter one after the other, or None to pad them.

    With 8 experts of 256² and 512 rows on a CPU of two threads, forward and backward took 1.6 times the time of the
    frozen experts with a product for each expert, and 1.1 times with batched products. Dropout has no padded node.

    Args:
        ends: the end of each expert's rows.   parameters: weight, bias, lora_A and lora_B.
    """
    if not x.is_cpu or autocast_dtype(x) is not None:
        return "batched products were measured on a CPU outside autocast alone"
    if any(t is not None and t.dtype != torch.float32 for t in (x, *parameters)):
        return "batched products were measured in float32 alone"
    if scale == 0.0 or any(t is not None and 0 in t.shape for t in parameters):
        return "0 · NaN and rank 0 need separate operations"
    return why_not_even(ends)


def why_not_even(ends: list[int]) -> str | None:
    """The reason why groups with these ends would need too much padding, or None if their sizes are similar."""
    if not ends or not ends[-1]:
        return "no row has a group"
    if (places := len(ends) * max(counts_of(ends))) > MOST_PLACES * ends[-1]:
        return f"groups of {ends[-1]} rows would have {places} places"
    return None
