"""`optimized`, whose experts and batches are computed by Triton kernels over tiles of rows, interpreted on a CPU."""

from typing import Any

import optimized
from optimized.dispatch.row_tiles import tiles_wanted

CONFORMANCE = {"name": "optimized, tiles of rows"}


@tiles_wanted()
def lora_grouped_linear(*args: Any, **kwargs: Any) -> Any:
    return optimized.lora_grouped_linear(*args, **kwargs)


@tiles_wanted()
def lora_grouped_linear_sorted(*args: Any, **kwargs: Any) -> Any:
    return optimized.lora_grouped_linear_sorted(*args, **kwargs)


@tiles_wanted()
def lora_batched_linear(*args: Any, **kwargs: Any) -> Any:
    return optimized.lora_batched_linear(*args, **kwargs)
