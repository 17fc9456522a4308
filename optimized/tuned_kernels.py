"""The kernels that `kernels/tuned.json` has entries for: what they are called there, and their largest rank."""

from torch import Tensor

# In the table: W in rows, as forward reads it, or in columns.
LINEAR_EXPAND, LINEAR_EXPAND_BACKWARD = "linear_expand", "linear_expand, backward"
MOST_ONE_READING_RANK = 32


def linear_expand_entry(weight: Tensor) -> str:
    """The name that entries of `tuned.json` have for one kernel beside a weight [N, K] of this layout."""
    return LINEAR_EXPAND if weight.stride(1) == 1 else LINEAR_EXPAND_BACKWARD
