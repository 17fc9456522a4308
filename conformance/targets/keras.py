"""Keras' `Dense` with `enable_lora`, on its torch backend: `loraspec run conformance.targets.keras`.

Keras computes x (W + s·A B) + b with matrices [in, out], in the dtype of the layer's policy, whatever autocast says.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

from conformance.targets.wrapped_layer import WrappedLayer, check, library, version_of

WRITTEN_FOR = ("keras", "3.15.1", "ci/peers builds an environment with it")
os.environ.setdefault("KERAS_BACKEND", "torch")
with library(*WRITTEN_FOR):
    import keras
    from keras.layers import Dense

if keras.backend.backend() != "torch":
    raise ImportError(f"the target of keras needs KERAS_BACKEND=torch: it is {keras.backend.backend()}")

CONFORMANCE = {
    "name": "Keras Dense.enable_lora",
    "version": version_of("keras"),
    "dtypes": ("float32", "bfloat16", "float16"),
    "dropout_positions": (),
    "features": {
        **dict.fromkeys(("dropout", "rslora", "initialisation", "memory_efficient", "vector_inputs"), "absent"),
        "autocast": "layer dtype",  # that of its policy
        "state_names": "other",
    },
    "deviations": dict.fromkeys(
        ("LAY-TO", "LIFE-LAYER-COMPILE"), "a layer computes in the dtype of its policy, which .to() does not change"
    ),
}


class LinearLoRA(WrappedLayer):
    """Keras' layer with the parameters of a linear layer, transposed, in the places of its variables.

    Source: keras 3.15.1, `keras/src/layers/core/dense.py`.
    """

    library = "Keras"
    dropout_positions = ()

    def wrap(self, orig_linear: nn.Linear, dim: int, alpha: Any, dropout: float, **_: bool) -> Any:
        """Keras' layer of the same sizes and dtype."""
        del dropout  # refused before
        if orig_linear.weight.dtype == torch.float64:
            raise NotImplementedError("float64: the adapter's variables are float32")
        self.base = orig_linear
        dtype = str(orig_linear.weight.dtype).removeprefix("torch.")
        layer = Dense(orig_linear.out_features, use_bias=orig_linear.bias is not None, dtype=dtype)
        layer.build((None, orig_linear.in_features))
        layer.enable_lora(dim, lora_alpha=alpha)
        self.A, self.B = (_transposed(variable) for variable in (layer.lora_kernel_a, layer.lora_kernel_b))
        return [layer]  # in a list it is no submodule: its variables only have the values that `forward` gives them

    @property
    def weight(self) -> Tensor:
        """The base layer's weight."""
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        """The base layer's bias."""
        return self.base.bias

    @property
    def lora_A(self) -> Any:
        """The adapter's first matrix [r, K]."""
        return self.A

    @property
    def lora_B(self) -> Any:
        """The adapter's second matrix [N, r]."""
        return self.B

    @property
    def scale(self) -> float:
        """The adapter's scaling."""
        return float(self.wrapped[0].lora_alpha / self.wrapped[0].lora_rank)

    def forward(self, x: Tensor) -> Tensor:
        """A call of Keras' layer, whose variables have the values of the parameters here."""
        (layer,) = self.wrapped
        values: list[tuple[Any, Any]] = [(layer._kernel, self.weight.T)]
        values += [(layer.lora_kernel_a, self.A.weight.T), (layer.lora_kernel_b, self.B.weight.T)]
        if self.bias is not None:
            values.append((layer.bias, self.bias))
        with keras.StatelessScope(state_mapping=values):
            return layer(x)  # type: ignore[no-any-return]


def _transposed(variable: Any) -> nn.Module:
    """A module whose weight has the transposed value of a variable."""
    holder = nn.Module()
    holder.weight = nn.Parameter(variable.value.detach().T.contiguous())
    return holder


with library(*WRITTEN_FOR):
    check(LinearLoRA)
