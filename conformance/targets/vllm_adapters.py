"""vLLM's loader: `loraspec adapters conformance.targets.vllm_adapters`, without a GPU.

`PEFTHelper` checks the folder and `LoRAModel.from_local_checkpoint` loads it, with the arguments of vLLM's worker for a
Llama model; `optimize` then multiplies the scale into lora_B, as its manager does before it fills the slots of the
kernels. Only these files are imported, so that `pip install --no-deps vllm` is enough, with stubs for the rest.
"""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from conformance.targets.package_part import imported, stub_of_types, without_init
from conformance.targets.wrapped_layer import library, version_of

LOGGER = SimpleNamespace(
    **dict.fromkeys(("info", "warning", "info_once", "warning_once"), logging.getLogger("vllm").debug)
)
ANYTHING = (
    "vllm.config.lora",
    "vllm.lora.layers",
    "vllm.model_executor.custom_op",
    "vllm.model_executor.layers.fused_moe",
    "vllm.model_executor.layers.linear",
    "vllm.model_executor.layers.vocab_parallel_embedding",
    "vllm.model_executor.models.utils",
    "vllm.model_executor.utils",
    "vllm.transformers_utils.repo_utils",
)
STUBS: dict[str, Any] = {name: stub_of_types() for name in ANYTHING} | {
    "vllm": {"envs": SimpleNamespace(), "__path__": []},
    "vllm.logger": {"init_logger": lambda _: LOGGER},
    "vllm.utils.torch_utils": {"PIN_MEMORY": False},
}
with library("vllm", "0.33.0", "pip install --no-deps vllm==0.33.0"), without_init("vllm", STUBS):
    LoRAModel: Any = imported("vllm.lora.lora_model").LoRAModel
    PEFTHelper: Any = imported("vllm.lora.peft_helper").PEFTHelper

_NO_GPT2 = "GPT2LMHeadModel does not support LoRA in vLLM"
_EXPERTS = "vLLM's manager unpacks experts beside its fused layers, which need a GPU"
CONFORMANCE: dict[str, Any] = {
    "name": "vllm LoRAModel",
    "version": version_of("vllm"),
    "adapters": {"conv1d": _NO_GPT2, "near-names": _NO_GPT2, "experts*": _EXPERTS},
}
LLAMA = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj embed_tokens lm_head"  # what its Llama takes


def load_adapter_deltas(model: nn.Module, path: str) -> dict[str, Tensor]:
    """scale·B A of each module that vLLM loaded."""
    helper = PEFTHelper.from_local_dir(path, None)
    helper.validate_legal(SimpleNamespace(max_lora_rank=64))
    vocabulary = next(module.num_embeddings for module in model.modules() if isinstance(module, nn.Embedding))
    loaded = LoRAModel.from_local_checkpoint(
        path,
        set(LLAMA.split()),
        peft_helper=helper,
        lora_model_id=1,
        device="cpu",
        dtype=torch.float32,
        model_vocab_size=vocabulary,
    )
    found: dict[str, Tensor] = {}
    for name, weights in loaded.loras.items():
        update = weights.optimize().lora_b @ weights.lora_a
        found[f"{name}.weight"] = update.T if isinstance(model.get_submodule(name), nn.Embedding) else update
    return found
