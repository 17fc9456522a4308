"""Known-bad twins of products: one of the two product modules multiplies wrongly."""

from __future__ import annotations

from tests.baselines.hybrid import Right
from tests.known_bad import breaks


@breaks("HYB-PROD-FWD", says="as if the bias term were missing")
class ForgetsTheBias(Right):
    def forward_product(self, x, weight, bias, transposed):
        return super().forward_product(x, weight, None, transposed)


@breaks("HYB-PROD-FWD", says="as if the bias term were added twice")
class AddsTheBiasTwice(Right):
    def forward_product(self, x, weight, bias, transposed):
        y = super().forward_product(x, weight, bias, transposed)
        return y if bias is None else y + bias


@breaks("HYB-PROD-FWD", says="raised RuntimeError")
class IgnoresWeightTransposed(Right):
    def forward_product(self, x, weight, bias, transposed):
        return super().forward_product(x, weight, bias, False)


@breaks("HYB-PROD-FWD", says="error ÷ budget", dtypes=("float32",))
class MultipliesInBfloat16(Right):
    def forward_product(self, x, weight, bias, transposed):
        return super().forward_product(x.bfloat16(), weight.bfloat16(), None, transposed).to(x.dtype) + (
            0 if bias is None else bias
        )


@breaks("HYB-PROD-BWD", says="raised RuntimeError")
class MultipliesByTheTransposedWeight(Right):
    def backward_product(self, g, weight, transposed):
        return super().backward_product(g, weight, not transposed)


@breaks("HYB-PROD-BWD", says="constant ratio -1")
class NegatesTheGradient(Right):
    def backward_product(self, g, weight, transposed):
        return -super().backward_product(g, weight, transposed)


@breaks("HYB-PROD-BWD", says="constant ratio 2")
class DoublesTheGradient(Right):
    def backward_product(self, g, weight, transposed):
        return 2 * super().backward_product(g, weight, transposed)


@breaks("HYB-PROD-SHAPE", says="raised RuntimeError", source="NVIDIA/apex #1601 (ST1)")
class FlattensByView(Right):
    def backward_product(self, g, weight, transposed):
        rows = super().backward_product(g.view(-1, g.shape[-1]), weight, transposed)
        return rows.view(*g.shape[:-1], -1)


@breaks("HYB-PROD-SHAPE", says="raised", source="NVIDIA-NeMo/Automodel HEAD 36044ad3d (ST5)")
class TakesThreeDimensionsOnly(Right):
    def forward_product(self, x, weight, bias, transposed):
        batch, tokens, features = x.shape if x.ndim != 2 else (1, *x.shape)
        y = super().forward_product(x.reshape(batch * tokens, features), weight, bias, transposed)
        return y.reshape(*x.shape[:-1], y.shape[-1])


@breaks("HYB-PROD-INPUTS", says="was modified")
class ScalesTheGradientInPlace(Right):
    def backward_product(self, g, weight, transposed):
        return super().backward_product(g.detach().mul_(2), weight, transposed) / 2
