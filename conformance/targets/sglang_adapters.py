"""SGLang's loader: `loraspec adapters conformance.targets.sglang_adapters`, without a GPU.

`LoRAConfig` reads the folder, `LoRAManager.validate_new_adapter` checks it, `LoRAAdapter` stacks the tensors of layers
that SGLang fuses, and `LoRAMemoryPool` copies them into the slots of the kernels. The update of each layer is read from
there, as the kernels read it. Only these files are imported, so that `pip install --no-deps sglang` is enough, with
stubs for the rest.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from conformance.targets.package_part import imported, stub_of_types, without_init
from conformance.targets.wrapped_layer import library, version_of

ANYTHING = (
    "sglang.srt.configs.load_config",
    "sglang.srt.distributed",
    "sglang.srt.layers.moe.fused_moe_triton.layer",
    "sglang.srt.layers.vocab_parallel_embedding",
    "sglang.srt.lora.backend.base_backend",
    "sglang.srt.lora.backend.lora_registry",
    "sglang.srt.lora.layers",
    "sglang.srt.lora.lora_registry",
    "sglang.srt.managers.io_struct",
    "sglang.srt.model_executor.forward_batch_info",
    "sglang.srt.model_loader.loader",
    "sglang.srt.runtime_context",
    "sglang.srt.server_args",
    "sglang.srt.utils",
    "sglang.srt.utils.hf_transformers_utils",
)
OFF = SimpleNamespace(get=lambda: False)
STUBS: dict[str, Any] = {name: stub_of_types() for name in ANYTHING}
STUBS["sglang.srt.environ"] = {"envs": SimpleNamespace(SGLANG_EXPERIMENTAL_LORA_OPTI=OFF)}
with library("sglang", "0.5.23", "pip install --no-deps sglang==0.5.23"), without_init("sglang", STUBS):
    common = imported("sglang.srt.layers.utils.common")
    STUBS["sglang.srt.layers.utils"] = {"get_layer_id": common.get_layer_id}
with library("sglang", "0.5.23", "pip install --no-deps sglang==0.5.23"), without_init("sglang", STUBS):
    LoRAAdapter: Any = imported("sglang.srt.lora.lora").LoRAAdapter
    LoRAConfig: Any = imported("sglang.srt.lora.lora_config").LoRAConfig
    LoRAManager: Any = imported("sglang.srt.lora.lora_manager").LoRAManager
    LoRAMemoryPool: Any = imported("sglang.srt.lora.mem_pool").LoRAMemoryPool
    NEEDED = {name: imported(f"sglang.srt.lora.{name}") for name in ("lora", "lora_config", "utils")}

_OTHER = "the target is written for SGLang's Llama"
CONFORMANCE: dict[str, Any] = {
    "name": "sglang LoRAAdapter",
    "version": version_of("sglang"),
    "adapters": dict.fromkeys(("conv1d", "near-names", "experts*"), _OTHER)
    | dict.fromkeys(("head", "tied-head", "embedding"), "SGLang's layers of the vocabulary need a GPU"),
}
FUSED = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.o_proj": ("self_attn.o_proj",),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down_proj": ("mlp.down_proj",),
}
LARGEST_RANK = 16


def load_adapter_deltas(model: nn.Module, path: str) -> dict[str, Tensor]:
    """scale·B A of each module, from the slots that SGLang filled."""
    config = LoRAConfig(path)
    reference = SimpleNamespace(lora_name="golden", lora_path=path, pinned=False)
    manager = SimpleNamespace(attn_dp_enabled=False, lora_refs={}, num_pinned_loras=0, max_loras_per_batch=8)
    LoRAManager.validate_new_adapter(manager, config, reference)
    layers = len(model.get_submodule("model.layers"))  # type: ignore[arg-type]
    sizes = SimpleNamespace(num_hidden_layers=layers, architectures=[], model_type="llama")
    with without_init("sglang", STUBS):
        adapter = LoRAAdapter("golden", config, sizes, None, None)
        adapter.initialize_weights_from_tensors(load_file(Path(path) / "adapter_model.safetensors"))
        pool = _pool(model, layers)
        pool.load_lora_weight_to_buffer("golden", 0, adapter, [_wrapped() for _ in adapter.layers], None, None)
    return _changes(model, pool, config.r, adapter.scaling)


def _wrapped() -> dict[str, Any]:
    """The wrapped modules of one layer, on one rank."""
    whole = SimpleNamespace(slice_lora_a_weights=lambda weight: weight, slice_lora_b_weights=lambda weight: weight)
    return dict.fromkeys(FUSED, whole)


def _pool(model: nn.Module, layers: int) -> Any:
    """A memory pool with one slot for a Llama model."""
    pool = LoRAMemoryPool.__new__(LoRAMemoryPool)
    pool.target_modules = {name.rpartition(".")[2] for name in FUSED}
    pool.num_layer, pool.max_lora_rank, pool.tp_rank, pool.base_model = layers, LARGEST_RANK, 0, None
    pool.strict_loading = pool.experts_shared_outer_loras = pool.pin_memory_available = False
    pool.A_buffer, pool.B_buffer, pool.embedding_A_buffer, pool.embedding_B_buffer = {}, {}, {}, {}
    pool.lm_head_A_buffer, pool.lm_head_B_buffer, pool.lora_added_tokens_size = {}, {}, 0
    for fused, parts in FUSED.items():
        shapes = [tuple(model.get_parameter(f"model.layers.0.{part}.weight").shape) for part in parts]
        name, N = fused.rpartition(".")[2], sum(shape[0] for shape in shapes)
        pool.A_buffer[name] = [torch.zeros(1, LARGEST_RANK * len(parts), shapes[0][1]) for _ in range(layers)]
        pool.B_buffer[name] = [torch.zeros(1, N, LARGEST_RANK) for _ in range(layers)]
    return pool


def _changes(model: nn.Module, pool: Any, rank: int, scale: float) -> dict[str, Tensor]:
    """The update of each layer as the kernels compute it: fused parts follow each other in A, `rank` rows each."""
    found: dict[str, Tensor] = {}
    for fused, parts in FUSED.items():
        name = fused.rpartition(".")[2]
        for layer in range(pool.num_layer):
            A, B, start = pool.A_buffer[name][layer][0], pool.B_buffer[name][layer][0], 0
            for number, part in enumerate(parts):
                parameter = f"model.layers.{layer}.{part}.weight"
                N = len(model.get_parameter(parameter))
                rows = A[number * rank : (number + 1) * rank]
                found[parameter] = scale * B[start : start + N, :rank] @ rows
                start += N
    return found
