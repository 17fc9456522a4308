"""vLLM's Triton kernels, `lora_shrink` and `lora_expand`: `loraspec run conformance.targets.vllm`.

The kernels and their metadata are those of the installed package; without a GPU, Triton's interpreter runs them. Of
vLLM only these files are imported, so that `pip install --no-deps vllm` is enough. Stubs stand for what they import of
the rest: the platform (none), the logger, the environment's switches (all off), and the registration of the operators.
In the interpreter K is not split into 64 parts, which would take seconds for each case.

As vLLM's manager of adapters does, the scale is multiplied into lora_B, and slots hold zeros beyond a rank. vLLM keeps
the strides of a slot by its address for as long as the process lives; here slots are new in each call, so that what it
keeps is cleared.
"""

from __future__ import annotations

import logging
import os
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
import triton
import triton.language
from torch import Tensor

from conformance.targets.package_part import imported, without_init
from conformance.targets.wrapped_layer import library, version_of
from reference.batch_checks import check_batch

WRITTEN_FOR = ("vllm", "0.33.0", "pip install --no-deps vllm==0.33.0")


def _unregistered(**_: Any) -> None:
    """Raise what makes vLLM's modules expose the plain functions in place of registered operators."""
    raise AttributeError("operators are not registered")


OFF = ("VLLM_BATCH_INVARIANT", "VLLM_LORA_ENABLE_DUAL_STREAM", "VLLM_LORA_DISABLE_PDL", "VLLM_TUNED_CONFIG_FOLDER")
PLATFORM = SimpleNamespace(is_cuda=lambda: False, get_device_name=lambda: "cpu")
LOGGER = SimpleNamespace(**{name: logging.getLogger("vllm").debug for name in ("warning_once", "info_once", "info")})
STUBS: dict[str, dict[str, Any]] = {
    "vllm": {"envs": SimpleNamespace(**dict.fromkeys(OFF)), "__path__": []},
    "vllm.platforms": {"current_platform": PLATFORM},
    "vllm.logger": {"init_logger": lambda _: LOGGER},
    "vllm.triton_utils": {"tl": triton.language, "triton": triton},
    "vllm.utils.torch_utils": {"direct_register_custom_op": _unregistered, "async_tensor_h2d": torch.tensor},
}
PLACE = "vllm.lora.ops.triton_ops"
with library(*WRITTEN_FOR), without_init("vllm", STUBS):
    SHRINK, EXPAND, UTILS = (imported(f"{PLACE}.{name}") for name in ("lora_shrink_op", "lora_expand_op", "utils"))
    LoRAKernelMeta = imported(f"{PLACE}.lora_kernel_metadata").LoRAKernelMeta
if os.environ.get("TRITON_INTERPRET") == "1":
    _chosen = SHRINK.get_lora_op_configs
    SHRINK.get_lora_op_configs = lambda *args, **options: _chosen(*args, **options) | {"split_k": 1}

CONFORMANCE = {
    "name": "vllm lora_shrink, lora_expand",
    "version": version_of("vllm"),
    # the kernels take 16 bits alone, and Triton's interpreter computes bfloat16 wrongly
    "dtypes": ["float16"] if os.environ.get("TRITON_INTERPRET") == "1" else ["float16", "bfloat16"],
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
    """The base product, then both kernels, as vLLM's `PunicaWrapperGPU.add_lora_linear` calls them."""
    check_batch(x, adapter_index, weight, bias, lora_A, lora_B, scale, ranks)
    names = [str(t.dtype).removeprefix("torch.") for t in (x, lora_A)]
    if len(set(names)) > 1 or names[0] not in CONFORMANCE["dtypes"]:
        raise NotImplementedError(f"dtypes {' and '.join(names)}: expected {' or '.join(CONFORMANCE['dtypes'])}")
    rows, index = x.reshape(adapter_index.numel(), x.shape[-1]), adapter_index.reshape(-1).to(torch.int32)
    y = F.linear(rows, weight, bias)
    A, B = _slots(lora_A, lora_B, scale, ranks)
    if len(rows):
        _added(rows.contiguous(), index, A, B, y)
    return y.reshape(*x.shape[:-1], y.shape[-1])


@torch.compiler.disable  # type: ignore[untyped-decorator]  # an operator, in vLLM, which is not compiled either
def _added(rows: Tensor, index: Tensor, A: Tensor, B: Tensor, y: Tensor) -> None:
    """Add the updates to y."""
    UTILS._LORA_A_PTR_DICT.clear()
    UTILS._LORA_B_PTR_DICT.clear()
    meta = LoRAKernelMeta.make(len(A), len(rows), rows.device)
    meta.prepare_tensors(index)
    arguments = meta.meta_args(len(rows), True)
    S = torch.zeros(1, len(rows), A.shape[1], dtype=torch.float32, device=rows.device)
    SHRINK.lora_shrink(rows, [A], S, *arguments, 1.0)
    EXPAND.lora_expand(S, [B], y, *arguments, add_inputs=True)


def _slots(lora_A: Tensor, lora_B: Tensor, scale: Tensor, ranks: Tensor | None) -> tuple[Tensor, Tensor]:
    """The adapters as vLLM holds them: zeros beyond each rank, and the scale in lora_B."""
    scaled = (lora_B * scale[:, None, None].to(lora_B.dtype)).contiguous()
    if ranks is None:
        return lora_A.contiguous(), scaled
    inside = torch.arange(lora_A.shape[1], device=lora_A.device) < ranks[:, None]
    return lora_A.where(inside[:, :, None], 0).contiguous(), scaled.where(inside[:, None, :], 0).contiguous()
