"""The names of kernels in `kernels/tuned.json`, and the largest rank of one of them."""

from torch import Tensor

# Two entries: W is contiguous along K, as in forward, or along N, as in backward.
LINEAR_EXPAND, LINEAR_EXPAND_BACKWARD = "linear_expand", "linear_expand, backward"
MOST_ONE_READING_RANK = 32


def linear_expand_entry(weight: Tensor) -> str:
    """The name of `linear_expand` in `tuned.json` for a weight [N, K] of this layout."""
    return LINEAR_EXPAND if weight.stride(1) == 1 else LINEAR_EXPAND_BACKWARD
