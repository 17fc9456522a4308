"""Tensors spread over ranks: what of them is on this rank, how they are placed, and a number over all ranks."""

import sys
from typing import Any

from torch import Tensor


def is_sharded(t: Tensor) -> bool:
    """Whether t is a DTensor, spread over the ranks of a device mesh."""
    # Its import takes a second or more: where nobody has made it, there is no DTensor.
    module: Any = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(t, module.DTensor)


def settled(t: Any) -> Any:
    """A DTensor without pending sums: where ranks hold summands (`Partial`), each then holds the sum."""
    from torch.distributed.tensor import Replicate

    return t.redistribute(placements=[Replicate() if p.is_partial() else p for p in t.placements])


def placed_as(t: Any, like: Any) -> Tensor:
    """t with the placements of another DTensor: products of shards come in whatever placement costs least."""
    return t.redistribute(placements=like.placements) if is_sharded(like) else t  # type: ignore[no-any-return]


def local_part(t: Any) -> Tensor:
    """What of t is on this rank: a plain tensor that shares its memory, maybe empty."""
    return t.to_local() if is_sharded(t) else t  # type: ignore[no-any-return]


def over_ranks(value: Tensor, of: Any, operation: str) -> Tensor:
    """A 0-d number of this rank's part of a tensor, combined over the ranks that hold other parts of it.

    Args:
        of: the tensor; a plain one is whole on every rank, and so is a DTensor along a mesh dimension that it is
            replicated over.
        operation: "sum" or "max".
    """
    if not is_sharded(of):
        return value
    from torch import distributed

    value, how = value.clone(), {"sum": distributed.ReduceOp.SUM, "max": distributed.ReduceOp.MAX}[operation]
    for dimension, placement in enumerate(of.placements):
        if not placement.is_replicate():
            distributed.all_reduce(value, how, group=of.device_mesh.get_group(dimension))
    return value
