"""A linear product that runs as its model's mode says, with the fast integers of `optimized.quantization`."""

from typing import Any

import torch
from torch import Tensor

import reference.service.remote_module
from optimized.quantization import QuantizedLinear
from reference.service.shared_state import HybridFHEMode


class RemoteModule(reference.service.remote_module.RemoteModule):
    """`reference.RemoteModule` with fast integer products, and no noise drawn where none survives rounding."""

    quantized_linear = QuantizedLinear

    def _product(self, quantized: Any, x: Tensor, mode: HybridFHEMode, dtype: torch.dtype) -> Tensor:
        """As the reference's; noise below 1/2 rounds to none, once in 10¹⁵ excepted, and compiling saw to the range."""
        if mode is HybridFHEMode.SIMULATE and self._has_no_noise:
            mode = HybridFHEMode.DISABLE
        return super()._product(quantized, x, mode, dtype)

    @property
    def _has_no_noise(self) -> bool:
        std = self.noise_std
        return std is not None and (not std.numel() or 8 * float(std.max()) < 0.5)
