"""Known-bad twins of activation: a block computes a different activation than the named one, or overflows."""

from __future__ import annotations

import torch

from tests.baselines.fused import Right
from tests.known_bad import breaks


@breaks("FUS-ACTIVATION", says="error ÷ budget", dtypes=("float32",), source="one GELU formula for both variants")
class TakesTanhForErf(Right):
    def activated(self, t, activation):
        return super().activated(t, "gelu_tanh" if activation == "gelu" else activation)


@breaks("FUS-ACTIVATION", says="error ÷ budget", dtypes=("float32",), source="one GELU formula for both variants")
class TakesErfForTanh(Right):
    def activated(self, t, activation):
        return super().activated(t, "gelu" if activation == "gelu_tanh" else activation)


@breaks("FUS-SATURATED", says="NaN", source="x·eˣ/(1 + eˣ), which is ∞/∞ from x = 89 on")
class ExponentiatesLargeNumbers(Right):
    def activated(self, t, activation):
        return t * t.exp() / (1 + t.exp()) if activation == "silu" else super().activated(t, activation)


@breaks("FUS-SATURATED", says="NaN", source="the derivative computed as e⁻ˣ/(1 + e⁻ˣ)²")
class ExponentiatesInTheSlope(Right):
    def slope(self, t, activation):
        if activation != "silu":
            return super().slope(t, activation)
        share, small = torch.sigmoid(t), torch.exp(-t)
        return share + t * small / (1 + small) ** 2


@breaks("FUS-ACTIVATION-NAME", says="expected a ValueError", dtypes=("float32",))
class TakesAnUnknownNameForSilu(Right):
    def lora_mlp(self, x, gate, up, down, activation="silu"):
        known = activation in ("silu", "gelu", "gelu_tanh", "relu2")
        return super().lora_mlp(x, gate, up, down, activation if known else "silu")


@breaks("FUS-ACTIVATION", says="error ÷ budget", dtypes=("float32",), source="σ(t) used as the derivative of t·σ(t)")
class TakesTheSigmoidForTheSlope(Right):
    def slope(self, t, activation):
        return torch.sigmoid(t) if activation == "silu" else super().slope(t, activation)
