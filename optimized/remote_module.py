"""A linear product that runs as its model's mode says, with the fast integers of `optimized.quantization`."""

from typing import Any

import reference.remote_module
from optimized.quantization import QuantizedLinear
from reference.quantization import Quantized
from reference.remote_module import HybridFHEMode

__all__ = ["HybridFHEMode", "RemoteModule"]


class RemoteModule(reference.remote_module.RemoteModule):
    """`reference.RemoteModule` with fast integer products, and no noise drawn where none survives rounding."""

    quantized_linear = QuantizedLinear

    def _simulated(self, quantized: Any, x: Quantized) -> Any:
        """As the reference's; noise below 1/2 rounds to none, once in 10¹⁵ excepted, and compiling saw to the range."""
        raw = quantized.accumulate(x.values)
        assert self.noise_std is not None
        if not self.noise_std.numel() or 8 * float(self.noise_std.max()) < 0.5:
            return raw
        return self._with_noise(raw)
