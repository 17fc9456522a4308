"""Right layers of other conventions than the default, and the targets that declare these."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.baselines.layer import Layer
from tests.baselines.linear import Right


def declaring(kind: type[Layer], **features: str) -> Any:
    """The target of a layer class that declares these features."""
    target: Any = Right(kind)
    target.CONFORMANCE = {"features": features}
    return target


class DropsTheMiddle(Right):
    """A layer and a function in plain autograd, with dropout between lora_A and lora_B."""

    CONFORMANCE = {"dropout_positions": ("mid",)}  # noqa: RUF012

    def dropped(self, middle: Tensor, p: float, training: bool) -> Tensor:
        """Apply dropout to x Aᵀ."""
        return F.dropout(middle, p, training)

    def lora_linear(
        self, x: Tensor, weight: Any, bias: Any, lora_A: Tensor, lora_B: Tensor, *args: Any, **options: Any
    ) -> Tensor:
        p, training = options.get("dropout", 0.0), options.get("training", False)
        middle = self.dropped(F.linear(x.to(lora_A.dtype), lora_A), p, training)
        y = F.linear(x, weight, bias)
        return y + (F.linear(middle, lora_B) * args[0]).to(y.dtype)


class DoraLayer(Layer):
    """A DoRA layer whose output is one formula over wide operands."""

    REFUSES = True  # a zero row

    def __init__(self, *args: Any) -> None:
        *others, use_dora = args
        super().__init__(*others, False)
        if use_dora:
            self.use_dora = True
            self.lora_magnitude = nn.Parameter(self.row_norm(self.weight.detach()).to(self.lora_A.weight.dtype))
            if self.REFUSES and not bool((self.lora_magnitude != 0).all()):
                raise ValueError("a row of the weight is zero")

    def dora(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        a, b = self.lora_A.weight.to(wide), self.lora_B.weight.to(wide)
        bias = torch.zeros(self.out_features, dtype=wide) if self.bias is None else self.bias.to(wide)
        y: Tensor = self.formula(x.to(wide), self.weight.detach().to(wide), a, b, bias, self.factor())
        return y.to(x.dtype)

    def formula(self, x: Tensor, weight: Tensor, a: Tensor, b: Tensor, bias: Tensor, m: Tensor) -> Tensor:
        """The output, by default that of `Layer`."""
        base = x @ weight.T
        if self.position == "pre":
            d = self.dropped(x)
            return base + bias + (m - 1) * (d @ weight.T) + m * self.scale * (d @ a.T @ b.T)
        return base + bias + self.dropped((m - 1) * base + m * self.scale * (x @ a.T @ b.T))


class ScaledBias(DoraLayer):
    """A DoRA layer whose magnitude multiplies the bias too."""

    def formula(self, x: Tensor, weight: Tensor, a: Tensor, b: Tensor, bias: Tensor, m: Tensor) -> Tensor:
        return super().formula(x, weight, a, b, bias, m) + (m - 1) * bias

    def forward(self, x: Tensor) -> Tensor:
        if self.merged and self.bias is not None and self.use_dora:
            return nn.functional.linear(x, self.weight, (self.kept * self.bias).to(x.dtype))
        return super().forward(x)

    def merge(self) -> None:
        if self.use_dora and not self.merged:
            self.kept = self.factor().detach()
        super().merge()


class DroppedAdapter(DoraLayer):
    """A DoRA layer whose dropout acts on the adapter's term only."""

    def formula(self, x: Tensor, weight: Tensor, a: Tensor, b: Tensor, bias: Tensor, m: Tensor) -> Tensor:
        pre = self.position == "pre"
        update = self.scale * ((self.dropped(x) if pre else x) @ a.T @ b.T)
        return m * (x @ weight.T + (update if pre else self.dropped(update))) + bias


class Unchecked(DoraLayer):
    """A DoRA layer that divides by the norm of a row without direction."""

    REFUSES = False


class ZeroFactor(Unchecked):
    """A DoRA layer in which a row without direction gets the factor 0: it never trains."""

    OF_A_ZERO_ROW = 0.0

    def factor(self) -> Tensor:
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        a, b = self.lora_A.weight.detach().to(wide), self.lora_B.weight.detach().to(wide)
        norm = self.row_norm(self.weight.to(wide) + self.scale * b @ a)
        found = self.lora_magnitude.to(wide) / norm.masked_fill(norm == 0, 1.0)
        return torch.where(norm == 0, self.OF_A_ZERO_ROW, found)


class BaseFactor(ZeroFactor):
    """A DoRA layer in which a row without direction gets the factor 1, as in the linear layer."""

    OF_A_ZERO_ROW = 1.0


class OwnNames(Layer):
    """A layer whose state_dict has names of its own."""

    NAMES = {"lora_A.weight": "down", "lora_B.weight": "up"}  # noqa: RUF012

    def state_dict(self, *args: Any, **options: Any) -> Any:
        found = super().state_dict(*args, **options)
        return {self.NAMES.get(name, name): value for name, value in found.items()}

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        ours = {name: other for other, name in self.NAMES.items()}
        known = {ours.get(name, name): value for name, value in state_dict.items()}
        return super().load_state_dict(known, strict=strict, assign=assign)


class HoldsALambda(Layer):
    """A layer that pickle refuses."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.hook = lambda x: x


class KeptForBackward(torch.autograd.Function):
    """The identity, which needs its output for backward and says so to autograd."""

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        y = y.clone()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g + 0 * ctx.saved_tensors[0]


class NeedsItsOutput(Layer):
    """A layer whose output must not be modified in place: its backward pass then raises."""

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = KeptForBackward.apply(super().forward(x))
        return found


class RefusesAutocast(Layer):
    """A layer that refuses to run under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):
            raise RuntimeError("no autocast here")
        return super().forward(x)


class AlphaFirst(Layer):
    """A layer in plain autograd that multiplies its update by alpha, and then divides by the rank."""

    def forward(self, x: Tensor) -> Tensor:
        rank = self.lora_B.in_features
        update = self.lora_B(self.lora_A(x)) * (self.scale * rank) / rank
        return F.linear(x, self.weight, self.bias) + update


class KeepsTheDtype(Layer):
    """A layer whose output has the dtype of x under autocast too."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).to(x.dtype)


class RoundsTheAdapter(Layer):
    """A layer that computes in the dtype of x, to which it rounds lora_A and lora_B first."""

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.lora_A.weight.to(x.dtype), self.lora_B.weight.to(x.dtype)
        return F.linear(x, self.weight, self.bias) + F.linear(F.linear(x, a), b) * self.scale


class KeepsCasts(Layer):
    """A layer of three products, whose weights autocast casts once for a region."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias) + self.lora_B(self.lora_A(x)) * self.scale


class SavesTheMergedWeight(Layer):
    """A layer whose state_dict holds the merged weight while it is merged."""

    def state_dict(self, *args: Any, **options: Any) -> Any:
        return nn.Module.state_dict(self, *args, **options)


class RankForZero(Layer):
    """A layer for which alpha = 0 means alpha = rank."""

    def __init__(self, right: Any, linear: nn.Linear, dim: int, alpha: float, *others: Any) -> None:
        super().__init__(right, linear, dim, alpha or dim, *others)
