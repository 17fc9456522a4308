"""Hugging Face PEFT's `lora.Linear`, with DoRA and rsLoRA: `loraspec run conformance.targets.peft`."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from conformance.targets.wrapped_layer import WrappedLayer, check, library, version_of

WRITTEN_FOR = ("peft", "0.21.2", "pip install 'loraspec[peers]'")
with library(*WRITTEN_FOR):
    import peft
    from peft.tuners.lora.layer import Linear

CONFORMANCE = {
    "name": "peft lora.Linear",
    "version": version_of("peft"),
    "dropout_positions": ("pre",),
    "features": {"state_names": "other"},
    "deviations": {
        "LAY-INIT": "PEFT draws lora_A by kaiming_uniform_(a=√5) or gaussian; it has no xavier_normal_",
    },
}
ADAPTER = "default"


class LinearLoRA(WrappedLayer):
    """PEFT's layer around a linear layer.

    Source: peft 0.21.2, `peft/tuners/lora/layer.py`.
    """

    library = "PEFT"

    def __init__(self, orig_linear: nn.Linear, *args: Any, use_dora: bool = False, **options: Any) -> None:
        super().__init__(orig_linear, *args, more={"use_dora": use_dora}, **options)

    def wrap(self, orig_linear: nn.Linear, dim: int, alpha: Any, dropout: float, **options: Any) -> Any:
        """PEFT's layer, which keeps orig_linear as its base_layer."""
        config = peft.LoraConfig(r=dim, lora_alpha=alpha, lora_dropout=dropout, **options)
        return Linear(orig_linear, ADAPTER, config=config, r=dim, lora_alpha=alpha)

    def adapters(self) -> list[Tensor]:
        """Both adapter matrices, and DoRA's magnitude if there is one."""
        return [*super().adapters(), *self.wrapped.lora_magnitude_vector.parameters()]

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
        """Whether the update is merged into the weight."""
        return bool(self.wrapped.merged)

    def merge(self) -> None:
        """PEFT's merge."""
        self.wrapped.merge()

    def unmerge(self) -> None:
        """PEFT's unmerge."""
        self.wrapped.unmerge()


with library(*WRITTEN_FOR):
    check(LinearLoRA)
