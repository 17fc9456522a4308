"""DeepSpeed's `LoRAOptimizedLinear`: `loraspec run conformance.targets.deepspeed`.

The layer is built as `deepspeed.linear.OptimizedLinear` builds it, without shards and without quantisation, and needs
no launcher and no process group then.
"""

from __future__ import annotations

import logging
from typing import Any

from torch import nn

from conformance.targets.wrapped_layer import WrappedLayer, check, library, version_of

WRITTEN_FOR = ("deepspeed", "0.19.8", "ci/peers builds an environment with it")
with library(*WRITTEN_FOR):
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)  # it warns of a machine without an accelerator
    from deepspeed.linear import LoRAConfig, OptimizedLinear

CONFORMANCE = {
    "name": "DeepSpeed LoRAOptimizedLinear",
    "version": version_of("deepspeed"),
    "dropout_positions": (),
    "features": {
        **dict.fromkeys(("dropout", "rslora", "adapter_dtype", "initialisation", "memory_efficient"), "absent"),
        "state_names": "other",
    },
}


class LinearLoRA(WrappedLayer):
    """DeepSpeed's layer with a base layer's weight.

    Source: deepspeed 0.19.8, `deepspeed/linear/optimized_linear.py`.
    """

    library = "DeepSpeed"
    dropout_positions = ()

    def wrap(self, orig_linear: nn.Linear, dim: int, alpha: Any, dropout: float, **_: bool) -> Any:
        """DeepSpeed's layer with the weight of orig_linear, which may have no bias."""
        del dropout  # refused before
        if orig_linear._parameters["bias"] is not None:
            raise NotImplementedError("bias: LoRAOptimizedLinear has none")
        config = LoRAConfig(lora_r=dim, lora_alpha=alpha, target_mods=["wrapped"])  # its name below this module
        weight = orig_linear.weight
        sizes = (orig_linear.in_features, orig_linear.out_features)
        layer = OptimizedLinear(*sizes, lora_config=config, dtype=weight.dtype, device=weight.device)
        layer.weight = weight
        return layer

    @property
    def bias(self) -> None:
        """No bias."""
        return

    @property
    def lora_A(self) -> Any:
        """The adapter's first linear layer."""
        return self.wrapped.lora_weight_1

    @property
    def lora_B(self) -> Any:
        """The adapter's second linear layer."""
        return self.wrapped.lora_weight_2

    @property
    def scale(self) -> float:
        """The adapter's scaling."""
        return float(self.wrapped.lora_scaling_factor)


with library(*WRITTEN_FOR):
    check(LinearLoRA, bias=False)
