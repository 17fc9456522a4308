"""The names of `reference`, with its signatures and what they compute, faster.

- `linear`: the base product and the update as one autograd node, summed in place, on the products of `matrices` and
  the masks of `dropout`.
- `nodes`: these nodes. `plain` is that in float32 and float64 on a CPU, `same_dtype` in 16 bits or on a GPU, `general`
  with dropout, mixed dtypes or autocast; `qkv` and `mlp` are a block of several projections, and `blocks`
  differentiates them twice; `adapter` is the update alone in Triton, `triton_layer` the whole layer around its kernels.
- `philox`: masks that nobody draws, an element's bits from its row and column.
- `qkv`, `mlp`: a block of several projections as one node, on the products of `projections`; `activations` computes
  f, in Triton or in PyTorch.
- `layer`, `model`: `reference`'s layers and patching with that node; `dora` puts it under a magnitude.
- `products`, `kernels`: the products of an update, in Triton; `tuned_kernels` names those with measured configurations.
- `dispatch`: which of several right ways is taken, and why not another.
- `gradnorm`, `training`: one pass over the gradients.
- `quantization`, `service.remote_module`, `splitting`: integers as int8, float32 or float64 products, whichever is
  exact; on a GPU one kernel multiplies, takes the zero points out and scales.
- `hybrid`: a frozen layer as one node where its products run here.
- `checkpoint`: the reference's files, loaded into the layers of `optimized`.

All other names have no faster variant and are the reference's.

What falls back says why: `why_not_triton(*operands)` for the kernels, `dispatch.integers.why_not_kernel` for that of
integers, `dispatch.fused_node.why_not_fused` for the node. ``loraspec bench optimized reference`` times it.
"""

from optimized.checkpoint import load_adapter, load_training, save_adapter, save_training
from optimized.dispatch.triton_kernels import why_not_triton
from optimized.dora import dora_linear
from optimized.gradnorm import clip_grad_norm_, grad_norm
from optimized.hybrid import CustomLinear
from optimized.layer import LinearLoRA, TritonLinearLoRA
from optimized.linear import lora_linear
from optimized.mlp import lora_mlp
from optimized.model import apply_lora_to_linear_modules, patch_linear_module
from optimized.nodes.adapter import LoRATritonFunction
from optimized.qkv import lora_qkv
from optimized.quantization import QuantizedLinear
from optimized.service.remote_module import RemoteModule
from optimized.splitting import HybridFHEModel
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
    get_remote_names,
    quantize_dynamic,
    quantize_static,
    quantize_weight,
    quantize_weight_columns,
    rowwise_parallel_lora,
    serve,
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
    "HybridFHEMode",
    "HybridFHEModel",
    "Keys",
    "LinearLoRA",
    "LoRATritonFunction",
    "LoraTraining",
    "ModuleMatcher",
    "PeftConfig",
    "Quantized",
    "QuantizedLinear",
    "RemoteClient",
    "RemoteError",
    "RemoteModule",
    "TritonLinearLoRA",
    "apply_lora_to_linear_modules",
    "clip_grad_norm_",
    "colwise_parallel_lora",
    "dora_linear",
    "get_remote_names",
    "grad_norm",
    "load_adapter",
    "load_training",
    "lora_linear",
    "lora_mlp",
    "lora_qkv",
    "patch_linear_module",
    "quantize_dynamic",
    "quantize_static",
    "quantize_weight",
    "quantize_weight_columns",
    "rowwise_parallel_lora",
    "save_adapter",
    "save_training",
    "serve",
    "why_not_triton",
    "wildcard_match",
]
