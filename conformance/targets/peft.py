"""Hugging Face PEFT's `lora.Linear` as a target: `loraspec run conformance.targets.peft`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

try:
    import peft
    from peft.tuners.lora.layer import Linear as PeftLinear
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"the target conformance.targets.peft needs {error.name}: pip install 'loraspec[peers]'",
        name=error.name,
    ) from error

CONFORMANCE = {
    "name": "peft lora.Linear",
    "version": peft.__version__,
    "dropout_positions": ("pre",),
    "deviations": {
        "LAY-INIT": "PEFT draws lora_A by kaiming_uniform_(a=√5) or gaussian; it has no xavier_normal_",
    },
}
ADAPTER = "default"


class LinearLoRA(nn.Module):
    """PEFT's layer around a linear layer, its adapter under this project's names.

    Raises:
        NotImplementedError: for dropout after the adapter, which PEFT does not have.
    Source: peft 0.21.2, `peft/tuners/lora/layer.py`.
    """

    def __init__(
        self,
        orig_linear: nn.Linear,
        dim: int = 8,
        alpha: Any = 32,
        dropout: float = 0.0,
        dropout_position: str = "post",
        lora_A_init_method: str = "xavier",  # noqa: ARG002  (a declared deviation: PEFT has its own)
        lora_dtype: torch.dtype | None = None,
        *,
        use_rslora: bool = False,
        use_memory_efficient_lora: bool = False,  # noqa: ARG002  (PEFT has one path)
        use_dora: bool = False,
    ) -> None:
        super().__init__()
        if dropout and dropout_position != "pre":
            raise NotImplementedError(f"PEFT applies dropout before the adapter only, not {dropout_position}")
        config = peft.LoraConfig(
            r=dim, lora_alpha=alpha, lora_dropout=dropout, use_rslora=use_rslora, use_dora=use_dora
        )
        for parameter in orig_linear.parameters():
            parameter.requires_grad_(False)  # as get_peft_model does for the whole model
        self.wrapped = PeftLinear(orig_linear, ADAPTER, config=config, r=dim, lora_alpha=alpha)
        kind = lora_dtype or orig_linear.weight.dtype
        for adapter in (self.wrapped.lora_A, self.wrapped.lora_B, self.wrapped.lora_magnitude_vector):
            adapter.to(kind)

    @property
    def _linear(self) -> Any:
        return self.wrapped.get_base_layer()

    @property
    def weight(self) -> Tensor:
        """The base layer's weight."""
        return self._linear.weight  # type: ignore[no-any-return]

    @property
    def bias(self) -> Tensor | None:
        """The base layer's bias."""
        return self._linear.bias  # type: ignore[no-any-return]

    @property
    def lora_A(self) -> Any:
        """The adapter's first linear layer."""
        return self.wrapped.lora_A[ADAPTER]

    @property
    def lora_B(self) -> Any:
        """The adapter's second linear layer."""
        return self.wrapped.lora_B[ADAPTER]

    @property
    def lora_magnitude(self) -> Any:
        """DoRA's magnitude."""
        return self.wrapped.lora_magnitude_vector[ADAPTER].weight

    @property
    def scale(self) -> float:
        """The adapter's scaling."""
        return float(self.wrapped.scaling[ADAPTER])

    @property
    def merged(self) -> bool:
        """Whether the weight holds the update."""
        return bool(self.wrapped.merged)

    def forward(self, x: Tensor) -> Tensor:
        """PEFT's forward."""
        return self.wrapped(x)  # type: ignore[no-any-return]

    def merge(self) -> None:
        """PEFT's merge."""
        self.wrapped.merge()

    def unmerge(self) -> None:
        """PEFT's unmerge."""
        self.wrapped.unmerge()
