"""The names of `reference`, with its signatures and what they compute, faster.

- `linear`: the base product and the update as one autograd node, summed in place; `plain` is that node in float32 and
  float64 on a CPU, `general` with dropout, mixed dtypes or autocast, on the products of `matrices` and the masks of
  `dropout`.
- `philox`: masks that nobody draws, an element's bits from its row and column.
- `qkv`, `mlp`: a block of several projections as one node, on the products of `projections`; `activations` computes
  f, in Triton or in PyTorch, and `blocks` differentiates twice.
- `layer`, `model`: `reference`'s layers and patching with that node; `dora` puts it under a magnitude.
- `adapter`, `products`, `kernels`: the update alone, in Triton; `node` is the whole layer around those kernels, and
  `routes` says which of several right ways is taken, and why not another.
- `gradnorm`, `training`: one pass over the gradients.
- `quantization`, `remote_module`, `splitting`: integers as int8, float32 or float64 products, whichever is exact;
  on a GPU one kernel multiplies, takes the zero points out and scales.
- `checkpoint`: the reference's files, loaded into the layers of `optimized`.
- `config`, `distributed`, `matching`, `hybrid`, `noise`, `encryption`, `deployment`, `remote`: have no faster variant
  and are the reference's.

What falls back says why: `why_not_triton(*operands)` for the kernels, `optimized.quantization.why_not_kernel` for
that of integers, `optimized.linear.why_not_fused` for the node. ``loraspec bench optimized reference`` times it.
"""

from optimized.adapter import LoRATritonFunction, why_not_triton
from optimized.checkpoint import load_adapter, load_training, save_adapter, save_training
from optimized.config import PeftConfig
from optimized.distributed import colwise_parallel_lora, rowwise_parallel_lora
from optimized.dora import dora_linear
from optimized.encryption import Backend, ConcreteBackend, EncryptionError, EncryptionParameters, Keys
from optimized.gradnorm import clip_grad_norm_, grad_norm
from optimized.hybrid import (
    LINEAR_LAYERS,
    BackwardModuleLinear,
    CustomLinear,
    ForwardBackwardModule,
    ForwardModuleLinear,
    get_remote_names,
)
from optimized.layer import LinearLoRA, TritonLinearLoRA
from optimized.linear import lora_linear
from optimized.matching import ModuleMatcher, wildcard_match
from optimized.mlp import lora_mlp
from optimized.model import apply_lora_to_linear_modules, patch_linear_module
from optimized.qkv import lora_qkv
from optimized.quantization import (
    Quantized,
    QuantizedLinear,
    quantize_dynamic,
    quantize_static,
    quantize_weight,
    quantize_weight_columns,
)
from optimized.remote import RemoteClient, RemoteError, serve
from optimized.remote_module import HybridFHEMode, RemoteModule
from optimized.splitting import HybridFHEModel
from optimized.training import LoraTraining

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
