"""SGLang's Triton kernels, `sgemm_lora_a` and `sgemm_lora_b`: `loraspec run conformance.targets.sglang`.

The kernels are those of the installed package; without a GPU, Triton's interpreter runs them. Their files import
nothing of SGLang but a type and a helper beside them, so that `pip install --no-deps sglang` is enough: the packages
above them are not initialised, and `LoRABatchInfo`, the type, is a stub. The base product, the segments and the slot
of rank 0 for rows without an adapter are made here, as SGLang's memory pool and backend make them.
"""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from conformance.targets.package_part import imported, without_init
from conformance.targets.wrapped_layer import library, version_of
from reference.batch_checks import check_batch, check_rows, check_segments, ranks_of

WRITTEN_FOR = ("sglang", "0.5.23", "pip install --no-deps sglang==0.5.23")
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
with library(*WRITTEN_FOR), without_init("sglang", {"sglang.srt.lora.utils": {"LoRABatchInfo": SimpleNamespace}}):
    # not compiled, since the compiler would import the modules of the kernels again, and so all of SGLang
    uncompiled: Any = torch.compiler.disable
    shrink = uncompiled(imported("sglang.kernels.ops.lora.dense.sgemm_lora_a").sgemm_lora_a_fwd)
    expand = uncompiled(imported("sglang.kernels.ops.lora.dense.sgemm_lora_b").sgemm_lora_b_fwd)

CONFORMANCE = {
    "name": "sglang sgemm_lora",
    "version": version_of("sglang"),
    # Triton's interpreter computes bfloat16 wrongly
    "dtypes": ["float32", "float16"] if os.environ.get("TRITON_INTERPRET") == "1" else ["float16", "bfloat16"],
    "features": {"batched_gradients": "absent", "adapter_dtype": "absent"},
}


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
    """The base product, and both kernels on the rows sorted by adapter, as SGLang's Triton backend calls them."""
    check_batch(x, adapter_index, weight, bias, lora_A, lora_B, scale, ranks)
    _check(x.dtype, lora_A.dtype)
    rows, index = x.reshape(adapter_index.numel(), x.shape[-1]), adapter_index.reshape(-1)
    base = F.linear(rows, weight, bias)
    order = index.argsort(stable=True)
    counts = torch.bincount(index + 1, minlength=len(lora_A) + 1)
    info = _info(counts.cumsum(0), torch.arange(-1, len(lora_A)), scale, ranks_of(lora_A, ranks), x.device)
    info.permutation = order.to(torch.int32)
    S = shrink(rows.contiguous(), _with_empty_slot(lora_A), info)
    return expand(S, _with_empty_slot(lora_B), info, base).reshape(*x.shape[:-1], base.shape[-1])  # type: ignore[no-any-return]


def lora_shrink(
    x: Tensor, lora_A: Tensor, segment_ends: Tensor, segment_adapters: Tensor, *, ranks: Tensor | None = None
) -> Tensor:
    """SGLang's `sgemm_lora_a_fwd`."""
    check_rows("x", x, "lora_A", lora_A)
    check_segments(segment_ends, segment_adapters, len(x), len(lora_A))
    _check(x.dtype, lora_A.dtype)
    scale = torch.ones(len(lora_A))
    info = _info(segment_ends, segment_adapters, scale, ranks_of(lora_A, ranks), x.device)
    return shrink(x.contiguous(), _with_empty_slot(lora_A), info)  # type: ignore[no-any-return]


def lora_expand(
    S: Tensor,
    base: Tensor,
    lora_B: Tensor,
    scale: Tensor,
    segment_ends: Tensor,
    segment_adapters: Tensor,
    *,
    ranks: Tensor | None = None,
) -> Tensor:
    """SGLang's `sgemm_lora_b_fwd`, onto a copy of base."""
    check_rows("S", S, "lora_B", lora_B)
    check_segments(segment_ends, segment_adapters, len(S), len(lora_B))
    _check(base.dtype, S.dtype, lora_B.dtype)
    info = _info(segment_ends, segment_adapters, scale, ranks_of(lora_B.transpose(1, 2), ranks), S.device)
    return expand(S.contiguous(), _with_empty_slot(lora_B), info, base.clone())  # type: ignore[no-any-return]


def _check(*dtypes: torch.dtype) -> None:
    names = [str(dtype).removeprefix("torch.") for dtype in dtypes]
    if len(set(dtypes)) > 1 or not set(names) <= set(CONFORMANCE["dtypes"]):
        raise NotImplementedError(f"dtypes {', '.join(names)}: expected one of {', '.join(CONFORMANCE['dtypes'])}")


def _with_empty_slot(stack: Tensor) -> Tensor:
    """The stacked matrices, and a last slot of zeros, which is that of rows without an adapter."""
    return torch.cat([stack, torch.zeros_like(stack[:1])]).contiguous()


def _info(ends: Tensor, adapters: Tensor, scale: Tensor, ranks: list[int], device: torch.device) -> Any:
    """The batch as SGLang's kernels take it: `LoRABatchInfo`."""
    starts = torch.cat([torch.zeros(1, dtype=torch.int32), ends.cpu().to(torch.int32)])
    lengths = starts.diff()
    slots = torch.where(adapters.cpu() < 0, len(ranks), adapters.cpu()).to(torch.int32)
    return SimpleNamespace(
        use_cuda_graph=False,
        bs=len(slots),
        num_segments=len(slots),
        max_len=int(lengths.max()),
        seg_lens=lengths.to(device),
        seg_indptr=starts.to(device),
        weight_indices=slots.to(device),
        lora_ranks=torch.tensor([*ranks, 0], dtype=torch.int32, device=device),
        scalings=torch.cat([scale.float().cpu(), torch.zeros(1)]).to(device),
        permutation=None,
    )
