"""Tensors sharded over ranks: their local part, their placements, and reductions over all ranks."""

import sys
from typing import Any

from torch import Tensor, nn


def is_sharded(t: Tensor) -> bool:
    """Whether t is a DTensor, distributed over the ranks of a device mesh."""
    # The import takes a second or more. If no one has imported the module, t is not a DTensor.
    module: Any = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(t, module.DTensor)


def settled(t: Any) -> Any:
    """A DTensor without `Partial` placements: ranks that held summands now hold their sum."""
    from torch.distributed.tensor import Replicate

    return t.redistribute(placements=[Replicate() if p.is_partial() else p for p in t.placements])


def placed_as(t: Any, like: Any) -> Tensor:
    """t with the placements of another DTensor, because torch chooses the cheapest placement for a product."""
    return t.redistribute(placements=like.placements) if is_sharded(like) else t  # type: ignore[no-any-return]


def local_part(t: Any) -> Tensor:
    """The part of t on this rank: a plain tensor, possibly empty, that shares the memory of t."""
    return t.to_local() if is_sharded(t) else t  # type: ignore[no-any-return]


def over_ranks(value: Tensor, of: Any, operation: str) -> Tensor:
    """Reduce a 0-d value of this rank's part of a tensor over the ranks that hold its other parts.

    Args:
        of: the tensor. A plain tensor needs no reduction, and a DTensor needs none over a mesh dimension where it
            is replicated.
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


def shard_of(whole: Tensor, like: Any) -> Tensor:
    """This rank's shard of a tensor that every rank holds, placed as a DTensor; no rank communicates.

    A tensor that is sharded already stays as it is.
    """
    if not is_sharded(like) or is_sharded(whole):
        return whole
    from torch.distributed.tensor import distribute_tensor

    placed: Tensor = distribute_tensor(
        whole.to(like.to_local().device), like.device_mesh, like.placements, src_data_rank=None
    )
    return placed


def gathered(t: Any) -> Tensor:
    """The whole tensor; every rank that holds a shard must call this."""
    return t.full_tensor() if is_sharded(t) else t  # type: ignore[no-any-return]


def reshard(model: nn.Module) -> None:
    """Free the parameters that `fully_shard` has gathered for forward, so that all its parameters are DTensors."""
    module: Any = sys.modules.get("torch.distributed.fsdp")
    if module is not None and hasattr(module, "FSDPModule"):
        for part in model.modules():
            if isinstance(part, module.FSDPModule):
                part.reshard()
