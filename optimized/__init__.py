"""A faster implementation of `reference`, with the same names, signatures and results.

- `linear`: the base product and the update as one autograd node, summed in place, on the products of `matrices` and
  the masks of `dropout`.
- `nodes`: the autograd nodes. For the layer, `plain` is the node in float32 and float64 on a CPU, `same_dtype` in 16
  bits or on a GPU, and `general` with dropout, mixed dtypes or autocast. `qkv` and `mlp` are nodes of several
  projections, and `blocks` computes their second derivatives. `adapter` is the update alone in Triton, and
  `triton_layer` the whole layer.
- `philox`: dropout masks that are computed, not stored: the bits of an element follow from its row and column.
- `qkv`, `mlp`: a block of several projections as one node, on the products of `projections`; `activations` computes
  f, in Triton or in PyTorch.
- `batched`: a batch whose rows use different adapters as one node, on the products of `sorted_rows`, `grouped_rows`
  or `padded_adapters`.
- `grouped_linear`: rows that choose their expert as one node: `nodes.grouped`, on the sorted rows of `groups`, or
  `nodes.padded` on `padded_rows`; `experts`: modules of experts, which sort their rows once.
- `packed_weight`, `packed_linear`, `packed_product`: packed bases. `packed` computes the numbers of a format by tables,
  in tiles on a CPU, and `nodes.packed` is the layer as one node, which saves x, x Aᵀ and the storage; on a GPU a kernel
  writes the numbers, or with few rows multiplies by them at once.
- `tiled_linear`: both by Triton kernels over `row_tiles`, as `nodes.tiled`; on a CPU only in a region of
  `dispatch.row_tiles.tiles_wanted`, as `tests/targets/tiled.py` does.
- `layer`, `model`: the layers and the patching of `reference` with these nodes; `dora` adds a magnitude.
- `products`, `kernels`: the products of an update, in Triton; `tuned_kernels` names those with measured configurations.
- `dispatch`: the choice between several correct implementations, with reasons.
- `gradnorm`, `training`, `trainer`: the gradient norm in one pass over the gradients.
- `quantization`, `service.remote_module`, `split_model`: integer products in int8, float32 or float64, the fastest
  exact one; on a GPU one kernel multiplies, corrects for the zero points and scales.
- `hybrid`: a frozen layer as one autograd node if its products run locally.
- `checkpoint`: the reference's files, loaded into the layers of `optimized`.

All other names are those of `reference`.

These functions give the reason for a fallback: `why_not_triton(*operands)` for the kernels,
`dispatch.integers.why_not_kernel` for the integer kernel, `dispatch.fused_node.why_not_fused` and
`dispatch.batched_node.why_not_batched` for the autograd nodes, `dispatch.packed_node.why_not_packed` and
`why_not_packed_layer` for packed bases, `dispatch.packed_weight` for their tiles and kernels,
`dispatch.grouped_mm.why_not_grouped` for torch's grouped product, `dispatch.padded_rows.why_not_padded` for batched
products, `dispatch.row_tiles.why_not_tiled` for the kernels over tiles of rows.
``loraspec bench optimized reference`` compares the times.
"""

from optimized.batched import lora_batched_linear
from optimized.checkpoint import load_adapter, load_training, save_adapter, save_training
from optimized.dispatch.triton_kernels import why_not_triton
from optimized.dora import dora_linear
from optimized.experts import GroupedExpertsLoRA, patch_moe_module
from optimized.gradnorm import clip_grad_norm_, grad_norm
from optimized.grouped_linear import lora_grouped_linear, lora_grouped_linear_sorted
from optimized.hybrid import CustomLinear
from optimized.layer import LinearLoRA, TritonLinearLoRA
from optimized.linear import lora_linear
from optimized.mlp import lora_mlp
from optimized.model import apply_lora_to_linear_modules, patch_linear_module
from optimized.nodes.adapter import LoRATritonFunction
from optimized.packed_linear import PackedLinear, packed_linear
from optimized.packed_product import lora_packed_linear
from optimized.packed_weight import PackedWeight, pack_weight
from optimized.qkv import lora_qkv
from optimized.quantization import QuantizedLinear
from optimized.service.remote_module import RemoteModule
from optimized.split_model import HybridFHEModel
from optimized.trainer import LoraTrainer
from optimized.training import LoraTraining
from reference import (
    LINEAR_LAYERS,
    Backend,
    BackwardModuleLinear,
    ConcreteBackend,
    EncryptionError,
    EncryptionParameters,
    ForwardBackwardModule,
    ForwardModuleLinear,
    HybridFHEMode,
    Keys,
    ModuleMatcher,
    PeftConfig,
    Quantized,
    RemoteClient,
    RemoteError,
    colwise_parallel_lora,
    dequantize_weight,
    get_remote_names,
    lora_expand,
    lora_shrink,
    merge_adapters,
    merge_dequantized,
    packed_fields,
    quantize_dynamic,
    quantize_static,
    quantize_weight,
    quantize_weight_columns,
    rowwise_parallel_lora,
    serve,
    unmerge_adapters,
    wildcard_match,
)

__all__ = [
    "LINEAR_LAYERS",
    "Backend",
    "BackwardModuleLinear",
    "ConcreteBackend",
    "CustomLinear",
    "EncryptionError",
    "EncryptionParameters",
    "ForwardBackwardModule",
    "ForwardModuleLinear",
    "GroupedExpertsLoRA",
    "HybridFHEMode",
    "HybridFHEModel",
    "Keys",
    "LinearLoRA",
    "LoRATritonFunction",
    "LoraTrainer",
    "LoraTraining",
    "ModuleMatcher",
    "PackedLinear",
    "PackedWeight",
    "PeftConfig",
    "Quantized",
    "QuantizedLinear",
    "RemoteClient",
    "RemoteError",
    "RemoteModule",
    "SealBackend",
    "TritonLinearLoRA",
    "apply_lora_to_linear_modules",
    "clip_grad_norm_",
    "colwise_parallel_lora",
    "dequantize_weight",
    "dora_linear",
    "get_remote_names",
    "grad_norm",
    "load_adapter",
    "load_training",
    "lora_batched_linear",
    "lora_expand",
    "lora_grouped_linear",
    "lora_grouped_linear_sorted",
    "lora_linear",
    "lora_mlp",
    "lora_packed_linear",
    "lora_qkv",
    "lora_shrink",
    "merge_adapters",
    "merge_dequantized",
    "pack_weight",
    "packed_fields",
    "packed_linear",
    "patch_linear_module",
    "patch_moe_module",
    "quantize_dynamic",
    "quantize_static",
    "quantize_weight",
    "quantize_weight_columns",
    "rowwise_parallel_lora",
    "save_adapter",
    "save_training",
    "serve",
    "unmerge_adapters",
    "why_not_triton",
    "wildcard_match",
]
