"""PEFT's mixed batches, `adapter_names=` of `lora.Linear`: `loraspec run conformance.targets.peft_batched`.

In PEFT each adapter has parameters of its own, and each entry of x's first dimension has the name of its adapter. So
x is given as a matrix of rows, and the parts of the caller's stacked tensors take the places of the parameters. What
belongs to stacked tensors alone is done here: their checks, ranks of 0, and zeros for an adapter that no row uses,
whose own parameters would keep a gradient of None.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from conformance.targets.wrapped_layer import library, version_of
from reference.batch_checks import check_batch, ranks_of

WRITTEN_FOR = ("peft", "0.21.2", "pip install 'loraspec[peers]'")
with library(*WRITTEN_FOR):
    import peft
    from peft.tuners.lora.layer import Linear

CONFORMANCE = {"name": "peft mixed batches", "version": version_of("peft")}
BASE = "__base__"  # PEFT's name for rows without an adapter


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
    """PEFT's layer with one adapter for each of the stacked ones, named by its number.

    Source: peft 0.21.2, `peft/tuners/lora/layer.py`, `LoraLayer._mixed_batch_forward`.
    """
    check_batch(x, adapter_index, weight, bias, lora_A, lora_B, scale, ranks)
    of_ranks = ranks_of(lora_A, ranks)
    index = adapter_index.reshape(-1).tolist()
    names = [BASE if each < 0 or not of_ranks[each] else str(each) for each in index]
    parameters = {"base_layer.weight": weight.detach()} | ({} if bias is None else {"base_layer.bias": bias})
    for adapter, rank in enumerate(of_ranks):
        parameters[f"lora_A.{adapter}.weight"] = lora_A[adapter, : max(rank, 1)]
        parameters[f"lora_B.{adapter}.weight"] = lora_B[adapter, :, : max(rank, 1)]
    # not compiled, since each call builds the layer; the group `layer` judges PEFT's layer compiled
    uncompiled: Any = torch.compiler.disable
    layer = uncompiled(_layer)(weight, bias, scale.tolist(), of_ranks)
    rows = x.reshape(len(index), x.shape[-1])
    y: Tensor = torch.func.functional_call(layer, parameters, (rows,), {"adapter_names": names})
    if lora_A.requires_grad or lora_B.requires_grad:
        y = y + (lora_A[:0].sum() + lora_B[:0].sum()).to(y.dtype)
    return y.reshape(*x.shape[:-1], y.shape[-1])


def _layer(weight: Tensor, bias: Tensor | None, scales: list[float], of_ranks: list[int]) -> Any:
    """PEFT's layer with these adapters, on the meta device; it has no ranks of 0, so 1 stands for them."""
    n, k = weight.shape
    with torch.device("meta"):
        base = nn.Linear(k, n, bias=bias is not None, dtype=weight.dtype)
        rank, config = max(of_ranks[0], 1), peft.LoraConfig(r=1, lora_alpha=1, init_lora_weights=False)
        layer = Linear(base, "0", config=config, r=rank, lora_alpha=1)
        for adapter, rank in enumerate(of_ranks[1:], 1):
            layer.update_layer(str(adapter), max(rank, 1), lora_alpha=1, config=config)
    layer.scaling.update({str(adapter): scale for adapter, scale in enumerate(scales)})
    return layer


with library(*WRITTEN_FOR):
    _layer(torch.ones(3, 2), None, [1.0, 2.0], [1, 2])
