"""Batches whose rows use different adapters, sorted once: grouped products, or one for each adapter in use."""

from torch import Tensor

from optimized.dense_adapters import dense_batched_linear
from optimized.dispatch.batched_node import why_not_batched, why_not_dense
from optimized.dispatch.row_tiles import why_not_tiled
from optimized.nodes.batched import BatchedLoRALinear
from optimized.sorted_rows import SortedRows
from optimized.tiled_linear import tiled_batched_linear
from reference.batch_checks import check_batch, ranks_of
from reference.batched import lora_batched_linear as plain_batched_linear


def lora_batched_linear(
    x: Tensor,
    adapter_index: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_A: Tensor,
    lora_B: Tensor,
    scale: Tensor,
    *,
    ranks: Tensor | None = None,
) -> Tensor:
    """``y_i = x_i Wᵀ + b + scale_e · (x_i A_eᵀ) B_eᵀ``: `reference.lora_batched_linear`, with its errors.

    Besides x and the parameters, the order of the rows and ``x_i A_eᵀ`` are saved for backward. If `why_not_batched`
    gives a reason, the reference computes. Triton kernels compute unless `why_not_tiled` gives a reason; then each row
    is multiplied with all adapters unless `why_not_dense` gives one. Rows are else sorted, and if `why_not_grouped`
    gives a reason, multiplied with one adapter after the other. In float32 and float64 a row has the same bits whatever
    the other rows are only where `why_not_dense` gives no reason: sorted rows have products of other shapes for other
    neighbours, which may sum in another order.
    """
    if why_not_batched(x, weight, bias, lora_A, lora_B):
        return plain_batched_linear(x, adapter_index, weight, bias, lora_A, lora_B, scale, ranks=ranks)
    check_batch(x, adapter_index, weight, bias, lora_A, lora_B, scale, ranks)
    if why_not_tiled(x, weight, bias, lora_A, lora_B) is None and len(lora_A) and x.numel():
        return tiled_batched_linear(x, adapter_index, weight, bias, lora_A, lora_B, scale, ranks)
    if why_not_dense(x, weight, bias, lora_A, lora_B) is None:
        return dense_batched_linear(x, adapter_index, weight, bias, lora_A, lora_B, scale, ranks)
    batch = SortedRows.of(adapter_index.reshape(-1), ranks_of(lora_A, ranks))
    metadata = (scale.detach().clone(), None if ranks is None else ranks.clone())
    operands = (weight.detach(), bias, lora_A, lora_B)
    return BatchedLoRALinear.apply(batch, metadata, x, adapter_index.clone(), *operands)  # type: ignore[no-any-return,no-untyped-call]
