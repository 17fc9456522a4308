"""A LoRA layer split over the ranks of a tensor-parallel group, column by column or row by row."""

from typing import TYPE_CHECKING, Any

from torch import nn

from .stored_weight import described, holds_packed_weight

if TYPE_CHECKING:
    from torch.distributed.tensor.parallel import ParallelStyle

# The dimension along which each parameter is split; None if every rank holds the whole parameter.
COLUMNS = {"weight": 0, "bias": 0, "lora_A.weight": None, "lora_B.weight": 0}
ROWS = {"weight": 1, "bias": None, "lora_A.weight": 1, "lora_B.weight": None}


def colwise_parallel_lora(**layouts: Any) -> "ParallelStyle":
    """A style for `torch.distributed.tensor.parallel.parallelize_module`: each rank computes some columns of y.

    Rank i holds the rows ``W_i, b_i, B_i`` of N, and all of A: ``y_i = x W_iᵀ + b_i + s·(x Aᵀ) B_iᵀ``. So dX and dA
    are sums over ranks: ``dA = Σ_i s·(g_i B_i)ᵀ x``.

    Args:
        layouts: ``input_layouts`` (all of x on each rank), ``output_layouts`` (columns) and ``use_local_output``
            (True) of torch's `ColwiseParallel`.
    Returns:
        a style for a `LinearLoRA`, whose parameters become DTensors. N need not be a multiple of the number of
        ranks; a rank may have no row. DDP and `fully_shard` need no style.
    Raises:
        ValueError: when applied to a module without an adapter, a packed weight, a magnitude (DoRA) or fan_in_fan_out.
    Source: NeMo Automodel `ColwiseParallelLora`, which splits A too and gathers x Aᵀ.
    """
    from torch.distributed.tensor.parallel import ColwiseParallel

    class ColwiseParallelLora(ColwiseParallel):
        def _partition_linear_fn(self, name: str, module: Any, device_mesh: Any) -> None:
            _place(name, module, device_mesh, COLUMNS)

    return ColwiseParallelLora(**layouts)


def rowwise_parallel_lora(**layouts: Any) -> "ParallelStyle":
    """A style for `parallelize_module`: each rank multiplies some features of x.

    Rank i holds the columns ``W_i, A_i`` of K, and all of b and B: ``y = Σ_i (x_i W_iᵀ) + b + s·S Bᵀ`` with
    ``S = Σ_i x_i A_iᵀ``. The bias is added once, and ``dB = s·gᵀ S``.

    Args:
        layouts: ``input_layouts`` (features of x), ``output_layouts`` (all of y on each rank) and
            ``use_local_output`` (True) of torch's `RowwiseParallel`. If K is not a multiple of the number of ranks, x
            must be a DTensor or come with ``input_layouts=Replicate()``.
    Returns, Raises: as in `colwise_parallel_lora`.
    Source: NeMo Automodel `RowwiseParallelLora`.
    """
    from torch.distributed.tensor.parallel import RowwiseParallel

    class RowwiseParallelLora(RowwiseParallel):
        def _partition_linear_fn(self, name: str, module: Any, device_mesh: Any) -> None:
            _place(name, module, device_mesh, ROWS)

    return RowwiseParallelLora(**layouts)


def _place(name: str, module: nn.Module, mesh: Any, cuts: dict[str, int | None]) -> None:
    """Distribute the parameters of a layer over the mesh; calls for submodules, which have a name, do nothing."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    if name:
        return
    if not (hasattr(module, "lora_A") and hasattr(module, "lora_B")):
        raise ValueError(f"got a {type(module).__name__} without lora_A and lora_B: expected a LinearLoRA")
    if holds_packed_weight(module):
        raise ValueError(
            f"the weight of this {type(module).__name__} is {described(module.weight)}, which is packed: its blocks "  # type: ignore[arg-type]
            f"cannot be split over ranks; expected a floating point weight [N, K]"
        )
    if getattr(module, "lora_magnitude", None) is not None:
        raise ValueError("the layer has a lora_magnitude: DoRA's row norms are not split over ranks")
    if getattr(module, "fan_in_fan_out", False):
        raise ValueError("the layer has fan_in_fan_out, a weight [K, N] as in Conv1D: expected a weight [N, K]")
    for path, dimension in cuts.items():
        owner, _, last = path.rpartition(".")
        holder = module.get_submodule(owner)
        parameter = getattr(holder, last)
        if parameter is not None:
            placement = Replicate() if dimension is None else Shard(dimension)
            spread = distribute_tensor(parameter.detach(), mesh, [placement])
            setattr(holder, last, nn.Parameter(spread, requires_grad=parameter.requires_grad))
