"""loralib's `Linear` as a target: `loraspec run conformance.targets.loralib`."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

try:
    import loralib
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"the target conformance.targets.loralib needs {error.name}: pip install 'loraspec[peers]'",
        name=error.name,
    ) from error

CONFORMANCE = {
    "name": "loralib Linear",
    "dropout_positions": ("pre",),
    "deviations": {
        "LAY-INIT": "loralib draws lora_A by kaiming_uniform_(a=√5) whatever is asked for",
        "LAY-STATE-NAMES": "loralib's parameters are lora_A and lora_B, not modules with a weight",
        "LAY-SCALING": "loralib has no rsLoRA",
    },
}


class LinearLoRA(nn.Module):
    """loralib's layer with a base layer's parameters, its adapter under this project's names.

    Source: loralib 0.1.2, `loralib/layers.py`; `merge_weights=False`, since merging follows train() and eval() there.
    """

    def __init__(
        self,
        orig_linear: nn.Linear,
        dim: int = 8,
        alpha: Any = 32,
        dropout: float = 0.0,
        dropout_position: str = "post",
        lora_A_init_method: str = "xavier",  # noqa: ARG002  (a declared deviation: loralib has one)
        lora_dtype: torch.dtype | None = None,
        *,
        use_rslora: bool = False,  # noqa: ARG002  (a declared deviation)
        use_memory_efficient_lora: bool = False,  # noqa: ARG002  (loralib has one path)
    ) -> None:
        super().__init__()
        if dropout and dropout_position != "pre":
            raise NotImplementedError(f"loralib applies dropout before the adapter only, not {dropout_position}")
        sizes = (orig_linear.in_features, orig_linear.out_features)
        kind = orig_linear.weight.dtype
        bias = orig_linear.bias is not None
        self.wrapped = loralib.Linear(
            *sizes, r=dim, lora_alpha=alpha, lora_dropout=dropout, merge_weights=False, bias=bias, dtype=kind
        )
        self.wrapped.weight, self.wrapped.bias = orig_linear.weight, orig_linear.bias
        for parameter in (self.wrapped.weight, self.wrapped.bias):
            if parameter is not None:
                parameter.requires_grad_(False)  # mark_only_lora_as_trainable does so for the whole model
        for adapter in (self.wrapped.lora_A, self.wrapped.lora_B):
            adapter.data = adapter.data.to(lora_dtype or kind)

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
        """The adapter's first matrix, as a module would hold it."""
        return SimpleNamespace(weight=self.wrapped.lora_A)

    @property
    def lora_B(self) -> Any:
        """The adapter's second matrix."""
        return SimpleNamespace(weight=self.wrapped.lora_B)

    @property
    def scale(self) -> float:
        """The adapter's scaling."""
        return float(self.wrapped.scaling)

    def forward(self, x: Tensor) -> Tensor:
        """loralib's forward."""
        return self.wrapped(x)  # type: ignore[no-any-return]
