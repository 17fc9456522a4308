"""A frozen linear layer whose rows use different adapters."""

import torch.nn.functional as F
from torch import Tensor

from .batch_checks import check_batch, ranks_of
from .linear import autocasting, cast, low_rank_update, widen


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
    """A frozen linear layer with an adapter for each row: ``y_i = x_i Wᵀ + b + scale_e · (x_i A_eᵀ) B_eᵀ``.

    Here e is adapter_index_i.
    Row i is what `lora_linear` gives with adapter e, whatever the other rows are. A row with index -1 is the base's
    output, bit for bit. The gradients are those of `lora_linear` over the rows of each adapter; an adapter that no
    row uses gets zeros.

    Args:
        x: [*, K], floating point; any number of leading dimensions, possibly empty.
        adapter_index: [*], integers: the adapter of each row, from 0 to L-1, or -1 for none.
        weight: [N, K] in x's dtype, frozen.   bias: [N] in x's dtype, or None.
        lora_A: [L, r, K].   lora_B: [L, N, r].   Padded to the largest rank; their dtype may differ from x's.
        scale: [L], floating point: alpha/rank of each adapter.
        ranks: [L], integers from 0 to r; None where every adapter has rank r. Rows of A_e and columns of B_e from
            ranks_e on are not read, and their gradients are zero.
    Returns:
        [*, N], in the dtype of `lora_linear`'s output.
    Raises:
        ValueError: if shapes or dtypes do not fit, naming both; if L differs; if an index or a rank is out of range.
    Source: Hu et al., LoRA (2021), section 4.1, for each row; batches after Chen et al., Punica (2023).
    """
    check_batch(x, adapter_index, weight, bias, lora_A, lora_B, scale, ranks)
    base = F.linear(widen(x), widen(weight.detach()), None if bias is None else cast(bias))

    rows_x, index, y = x.reshape(-1, x.shape[-1]), adapter_index.reshape(-1), base.reshape(-1, base.shape[-1])
    for adapter, rank in enumerate(ranks_of(lora_A, ranks)):
        rows = (index == adapter).nonzero()[:, 0]
        A, B = lora_A[adapter, :rank], lora_B[adapter, :, :rank]
        update = low_rank_update(rows_x[rows], A, B, scale.detach()[adapter])
        y = y.index_add(0, rows, update.to(y.dtype))
    y = y.reshape(base.shape)
    return y if autocasting(x) else y.to(x.dtype)
