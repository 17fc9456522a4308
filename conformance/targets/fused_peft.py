"""PEFT's layer computed by another library's fused projection, as that library replaces it in a model."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from conformance.targets import peft


class FusedLayer(peft.LinearLoRA):
    """PEFT's parameters and state; a subclass says what computes y.

    The fused functions are written for x of [batch, tokens, K]: any other x is viewed as one batch.
    """

    def project(self, x: Tensor) -> Any:
        """y of x [batch, tokens, K]."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """The fused projection, in the leading dimensions of x."""
        if x.dim() == 3:
            return self.project(x)  # type: ignore[no-any-return]
        y: Tensor = self.project(x.reshape(1, x.shape[:-1].numel(), x.shape[-1]))
        return y.reshape(*x.shape[:-1], y.shape[-1])


def declaration(name: str, version: str) -> dict[str, Any]:
    """What both fused libraries declare."""
    return {
        "name": name,
        "version": version,
        "devices": ("cuda",),
        "dropout_positions": peft.CONFORMANCE["dropout_positions"],
        "deviations": peft.CONFORMANCE["deviations"],
    }
