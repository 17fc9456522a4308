"""The specification of LoRA, and of its training with remote linear layers, as plain PyTorch.

Read the files in this order. Each file holds one concept; each public docstring states the formula, shapes, dtypes
and errors. The symbols are the same everywhere: x [*, K], weight W [N, K], bias b [N], lora_A A [r, K],
lora_B B [N, r], scale s, and g for the gradient of the output.

- `linear`: the formula, `lora_linear`.
- `adapter`: the adapter term of that formula with its gradients written out, `LoRATritonFunction`.
- `dora`: magnitude and direction, `dora_linear`.
- `qkv`, `mlp`: fused blocks of several such layers, `lora_qkv` and `lora_mlp`; `projection` is one layer of a block.
- `batched`: one such layer with an adapter for each row, `lora_batched_linear`; `segments`: its update in two halves on
  sorted rows, `lora_shrink` and `lora_expand`; `batch_checks` refuses operands that do not fit.
- `grouped_linear`: a layer for each expert, as one function of rows that choose theirs, `lora_grouped_linear`.
- `layer`: the formula as a module that merges and unmerges, `LinearLoRA`; `base_layer` says which linear layers can
  have an adapter, and which can be merged.
- `packed_weight`: a frozen weight in few bits, `PackedWeight` and `pack_weight`; the package `packed` has one file for
  each family of formats. `packed_product`: the formula on such a weight, `lora_packed_linear`; `packed_linear`: it as
  a module, `PackedLinear`; `packed_base`: what packed layers store, here and in bitsandbytes, `packed_fields`,
  `dequantize_weight` and `merge_dequantized`; `packed_layer`: the forward pass of an adapted one.
- `config`: every option with its default, `PeftConfig`; `layer_patterns`: the options of single layers.
- `matching`: the rule that chooses modules by name, `ModuleMatcher`.
- `experts`: the experts of a mixture as a module with adapters, `patch_moe_module`; `experts_module` says which modules
  can have them, and `expert_targets` chooses them in a model by names of parameters.
- `model`: functions that put adapters into a model, `patch_linear_module` and `apply_lora_to_linear_modules`;
  `patched_class` is the class of a patched module, and `rollback` undoes a change that fails part-way.
- `merged_model`: merging all adapters of a model, `merge_adapters` and `unmerge_adapters`.
- `gradnorm`: the gradient norm, and gradient clipping.
- `distributed`: a layer split over ranks, `colwise_parallel_lora` and `rowwise_parallel_lora`; `sharded`: tensors
  that are sharded over ranks.
- `hybrid`: linear layers whose products can run on a server, `CustomLinear`.
- `training`: one training step of such a model, `LoraTraining`; `layer_replacement`: which layers become such layers;
  `step_state`: the state before a step, to undo it.
- `checkpoint`: an adapter on disk, in PEFT's layout, `save_adapter` and `load_adapter`. It uses the package `files`:
  `training_file`: a training run, `save_training` and `load_training`; `peft_format`, `peft_fields`, `tensor_names`,
  `expert_tensors`, `expert_files`, `adapter_checks`, `rank_agreement`, `tensor_file`, `random_states`, `plain_values`
  and `whole_files`.
- `quantization`: numbers as n-bit integers, and `QuantizedLinear`, a linear layer that multiplies them.
- `split_model`: a model whose products run remotely, `HybridFHEModel`.
- `trainer`: the training of such a model over epochs, `LoraTrainer`.
- the package `encrypted`: encrypted integer products.
  - `noise`: the parameter sets of the encryption, `EncryptionParameters`, and the noise of its results.
  - `envelope`, `layout`: the checks of a message before it is used.
  - `keys`: a pair of keys that is never shown, `Keys`; `library`: the wrapper of the encryption library.
  - `encryption`: the products, `Backend` and `ConcreteBackend`.
  - `seal_backend`: products packed by tokens, `SealBackend`; it uses `polynomial_layout`, `modular` and `seal_library`.
  - `backends`: the backends by name, and the default one; `answer_check`: the client's check of a server's answers.
- the package `service`: the client and the server of a split model.
  - `remote_module`: a product as each `HybridFHEMode` computes it, `RemoteModule`; it uses `shared_state`,
    `encrypted_input` and `weight_version`.
  - `protocol`: the messages between client and server; `client`: `RemoteClient`.
  - `server`: `serve`; it uses `listener`, `connection`, `application`, `key_store` and `worker`.
  - `deployment`: both parts of a split model on disk.

This package is not fast. `optimized` has the same names, files and signatures, and is fast.
"""

from .adapter import LoRATritonFunction
from .batched import lora_batched_linear
from .checkpoint import load_adapter, load_training, save_adapter, save_training
from .config import PeftConfig
from .distributed import colwise_parallel_lora, rowwise_parallel_lora
from .dora import dora_linear
from .encrypted.encryption import Backend, ConcreteBackend, EncryptionError, EncryptionParameters, Keys
from .encrypted.seal_backend import SealBackend
from .experts import GroupedExpertsLoRA, patch_moe_module
from .gradnorm import clip_grad_norm_, grad_norm
from .grouped_linear import lora_grouped_linear, lora_grouped_linear_sorted
from .hybrid import (
    LINEAR_LAYERS,
    BackwardModuleLinear,
    CustomLinear,
    ForwardBackwardModule,
    ForwardModuleLinear,
    get_remote_names,
)
from .layer import LinearLoRA, TritonLinearLoRA
from .linear import lora_linear
from .matching import ModuleMatcher, wildcard_match
from .merged_model import merge_adapters, unmerge_adapters
from .mlp import lora_mlp
from .model import apply_lora_to_linear_modules, patch_linear_module
from .packed_base import dequantize_weight, merge_dequantized, packed_fields
from .packed_linear import PackedLinear, packed_linear
from .packed_product import lora_packed_linear
from .packed_weight import PackedWeight, pack_weight
from .qkv import lora_qkv
from .quantization import (
    Quantized,
    QuantizedLinear,
    quantize_dynamic,
    quantize_static,
    quantize_weight,
    quantize_weight_columns,
)
from .segments import lora_expand, lora_shrink
from .service.client import RemoteClient, RemoteError
from .service.remote_module import RemoteModule
from .service.server import serve
from .service.shared_state import HybridFHEMode
from .split_model import HybridFHEModel
from .trainer import LoraTrainer
from .training import LoraTraining

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
    "wildcard_match",
]
