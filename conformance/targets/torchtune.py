"""torchtune's `LoRALinear` as a target: `loraspec run conformance.targets.torchtune`."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

try:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torchao's, about compiled parts for other versions of torch
        from torchtune.modules.peft import LoRALinear
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"the target conformance.targets.torchtune needs {error.name}: pip install 'loraspec[torchtune]'",
        name=error.name,
    ) from error

CONFORMANCE = {
    "name": "torchtune LoRALinear",
    "dropout_positions": ("pre",),
    "deviations": {
        "LAY-INIT": "torchtune draws lora_a by kaiming_uniform_(a=√5) whatever is asked for",
        "LAY-STATE-NAMES": "torchtune's names are lora_a and lora_b",
        "LAY-SCALING": "torchtune has no rsLoRA",
    },
}


class LinearLoRA(nn.Module):
    """torchtune's layer with a base layer's parameters, its adapter under this project's names.

    Source: torchtune 0.6.1, `torchtune/modules/peft/lora.py`.
    """

    def __init__(
        self,
        orig_linear: nn.Linear,
        dim: int = 8,
        alpha: Any = 32,
        dropout: float = 0.0,
        dropout_position: str = "post",
        lora_A_init_method: str = "xavier",  # noqa: ARG002  (a declared deviation: torchtune has one)
        lora_dtype: torch.dtype | None = None,
        *,
        use_rslora: bool = False,  # noqa: ARG002  (a declared deviation)
        use_memory_efficient_lora: bool = False,  # noqa: ARG002  (torchtune has one path)
    ) -> None:
        super().__init__()
        if dropout and dropout_position != "pre":
            raise NotImplementedError(f"torchtune applies dropout before the adapter only, not {dropout_position}")
        kind, bias = orig_linear.weight.dtype, orig_linear.bias
        sizes = (orig_linear.in_features, orig_linear.out_features)
        self.wrapped = LoRALinear(*sizes, dim, alpha, dropout=dropout, use_bias=bias is not None)
        self.wrapped.weight, self.wrapped.bias = orig_linear.weight, bias
        for parameter in (self.wrapped.weight, self.wrapped.bias):
            if parameter is not None:
                parameter.requires_grad_(False)  # set_trainable_params does so for the whole model
        for adapter in (self.wrapped.lora_a, self.wrapped.lora_b):
            adapter.to(lora_dtype or kind)

    @property
    def weight(self) -> Tensor:
        """The base layer's weight."""
        return self.wrapped.weight  # type: ignore[no-any-return]

    @property
    def bias(self) -> Tensor | None:
        """The base layer's bias."""
        return self.wrapped.bias  # type: ignore[no-any-return]

    @property
    def lora_A(self) -> Any:
        """The adapter's first linear layer."""
        return self.wrapped.lora_a

    @property
    def lora_B(self) -> Any:
        """The adapter's second linear layer."""
        return self.wrapped.lora_b

    @property
    def scale(self) -> float:
        """The adapter's scaling."""
        return float(self.wrapped.alpha / self.wrapped.rank)

    def forward(self, x: Tensor) -> Tensor:
        """torchtune's forward."""
        return self.wrapped(x)  # type: ignore[no-any-return]
