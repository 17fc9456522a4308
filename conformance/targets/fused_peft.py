"""PEFT's layer with the forward pass of another library's fused projection, as that library patches a model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from conformance.targets import peft
from conformance.targets.wrapped_layer import version_of

# Both compute in the dtype of x, so as not to cast x to that of the adapter and back. Their backward passes run under
# the autocast of a GPU alone.
FEATURES = {"adapter_dtype": "input dtype"} | ({} if torch.cuda.is_available() else {"autocast": "absent"})


class FusedLayer(peft.LinearLoRA):
    """PEFT's parameters and state; a subclass computes y.

    The fused functions take x of shape [batch, tokens, K]; any other x is reshaped to one batch.
    """

    def project(self, x: Tensor) -> Any:
        """The output y for x [batch, tokens, K]."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """The fused projection for any leading dimensions of x."""
        if x.dim() == 3:
            return self.project(x)  # type: ignore[no-any-return]
        y: Tensor = self.project(x.reshape(1, x.shape[:-1].numel(), x.shape[-1]))
        return y.reshape(*x.shape[:-1], y.shape[-1])


def declaration(name: str, version: str, **features: str) -> dict[str, Any]:
    """The declaration that both fused libraries share.

    Args:
        version: of the fused library; that of PEFT, whose layer it is, follows.
        features: what the library declares beyond what PEFT does.
    """
    shared: Any = peft.CONFORMANCE["features"]
    return {
        "name": name,
        "version": f"{version}+peft.{version_of('peft')}",
        "dropout_positions": peft.CONFORMANCE["dropout_positions"],
        "features": {**shared, **FEATURES, **features},
    }
