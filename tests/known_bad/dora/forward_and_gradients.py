"""Known-bad twins of forward and gradients: the norm is wrong, or a gradient is zero, negated or doubled."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.baselines.conventions import DoraLayer, declaring
from tests.baselines.layer import Layer
from tests.known_bad import record
from tests.known_bad.dora.registration import twin

ALL = ("float64", "float32", "bfloat16", "float16")


class Weighed(torch.autograd.Function):
    """The identity; its backward multiplies the gradient by a factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return g * ctx.factor, None


def weighed(x: Tensor, factor: float) -> Tensor:
    """Return x, with its gradient multiplied by `factor`."""
    return Weighed.apply(x, factor)  # type: ignore[no-any-return]


@twin("DORA-FWD", says="worst", source="the norm taken over columns")
class NormalisesColumns(Layer):
    def row_norm(self, weight: Tensor) -> Tensor:
        wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
        norm = torch.linalg.vector_norm(wide, dim=0)
        return norm[torch.arange(len(weight)) % len(norm)]


@twin("DORA-FWD", says="worst", source="a weight [K, N] that is not told from one [N, K]")
class NormalisesColumnsOfASquare(Layer):
    def row_norm(self, weight: Tensor) -> Tensor:
        return super().row_norm(weight.T if weight.shape[0] == weight.shape[1] else weight)


@twin("DORA-FWD", says="worst", source="langtune 0.1.48, FastLoRALinear: each output divided by its norm")
class NormalisesTheOutput(Layer):
    def dora(self, x: Tensor) -> Tensor:
        y = super().dora(x) / self.factor().to(x.dtype) * self.lora_magnitude.to(x.dtype)
        return y / torch.linalg.vector_norm(y.detach(), dim=-1, keepdim=True).clamp(min=1e-8)


@twin("DORA-FWD", says="as if the update were missing from the norm", source="the norm of W alone")
class LeavesTheUpdateOutOfTheNorm(Layer):
    def factor(self) -> Tensor:
        return self.lora_magnitude.float() / self.row_norm(self.weight).float()


@twin("DORA-FWD", says="as if the scale were missing from the norm", source="the norm of W + BA")
class LeavesTheScaleOutOfTheNorm(Layer):
    def factor(self) -> Tensor:
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        a, b = self.lora_A.weight.detach().to(wide), self.lora_B.weight.detach().to(wide)
        return self.lora_magnitude.to(wide) / self.row_norm(self.weight.to(wide) + b @ a)


@twin("DORA-FWD", says="as if the bias were scaled by the magnitude", source="a bias multiplied by the magnitude")
class ScalesTheBias(Layer):
    def dora(self, x: Tensor) -> Tensor:
        y = super().dora(x)
        return y if self.bias is None else y + ((self.factor() - 1) * self.bias).to(y.dtype)


record(
    "ScalesNoBiasThoughItSaysSo",
    declaring(DoraLayer, dora_bias="scaled"),
    "DORA-FWD",
    says="as if the bias were not scaled by the magnitude",
    source="a convention declared and not followed",
    phrase="does not scale the bias by the magnitude although it declares so",
)


@twin("DORA-BWD-DX", says="worst", source="x detached on the base path")
class DetachesXOnTheBase(Layer):
    def dora(self, x: Tensor) -> Tensor:
        part = self.factor().detach() * nn.functional.linear(x, self.weight).float()
        return super().dora(x) - (part - part.detach()).to(x.dtype)


@twin("DORA-BWD-DX", says="zeros", dtypes=ALL, source="gradients that no test compared")
class ZeroesDX(Layer):
    def dora(self, x: Tensor) -> Tensor:
        return super().dora(weighed(x, 0.0))


@twin("DORA-BWD-DX", says="constant ratio -1", dtypes=ALL, source="gradients that no test compared")
class NegatesDX(Layer):
    def dora(self, x: Tensor) -> Tensor:
        return super().dora(weighed(x, -1.0))


@twin("DORA-BWD-DX", says="constant ratio 2", dtypes=ALL, source="gradients that no test compared")
class DoublesDX(Layer):
    def dora(self, x: Tensor) -> Tensor:
        return super().dora(weighed(x, 2.0))


@twin("DORA-BWD-DA", says="zeros", dtypes=ALL, source="gradients that no test compared")
class ZeroesDA(Layer):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if self.use_dora:
            self.lora_A.weight.register_hook(lambda g: g * 0.0)


@twin("DORA-BWD-DA", says="constant ratio -1", dtypes=ALL, source="gradients that no test compared")
class NegatesDA(Layer):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if self.use_dora:
            self.lora_A.weight.register_hook(lambda g: g * -1.0)


@twin("DORA-BWD-DA", says="constant ratio 2", dtypes=ALL, source="gradients that no test compared")
class DoublesDA(Layer):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if self.use_dora:
            self.lora_A.weight.register_hook(lambda g: g * 2.0)


@twin("DORA-BWD-DB", says="zeros", dtypes=ALL, source="gradients that no test compared")
class ZeroesDB(Layer):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if self.use_dora:
            self.lora_B.weight.register_hook(lambda g: g * 0.0)


@twin("DORA-BWD-DB", says="constant ratio -1", dtypes=ALL, source="gradients that no test compared")
class NegatesDB(Layer):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if self.use_dora:
            self.lora_B.weight.register_hook(lambda g: g * -1.0)


@twin("DORA-BWD-DB", says="constant ratio 2", dtypes=ALL, source="gradients that no test compared")
class DoublesDB(Layer):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if self.use_dora:
            self.lora_B.weight.register_hook(lambda g: g * 2.0)


@twin("DORA-BWD-DM", says="zeros", dtypes=ALL, source="gradients that no test compared")
class ZeroesDM(Layer):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if self.use_dora:
            self.lora_magnitude.register_hook(lambda g: g * 0.0)


@twin("DORA-BWD-DM", says="constant ratio -1", dtypes=ALL, source="gradients that no test compared")
class NegatesDM(Layer):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if self.use_dora:
            self.lora_magnitude.register_hook(lambda g: g * -1.0)


@twin("DORA-BWD-DM", says="constant ratio 2", dtypes=ALL, source="gradients that no test compared")
class DoublesDM(Layer):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if self.use_dora:
            self.lora_magnitude.register_hook(lambda g: g * 2.0)


@twin("DORA-BWD-DB", says="as if the norm were differentiated", source="the norm not detached")
class DifferentiatesTheNorm(Layer):
    def factor(self) -> Tensor:
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        a, b = self.lora_A.weight.to(wide), self.lora_B.weight.to(wide)
        return self.lora_magnitude.to(wide) / self.row_norm(self.weight.to(wide) + self.scale * b @ a)


@twin("DORA-BWD-DA", says="as if the norm were differentiated", source="the norm not detached, for A only")
class DifferentiatesTheNormByA(Layer):
    def factor(self) -> Tensor:
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        a, b = self.lora_A.weight.to(wide), self.lora_B.weight.detach().to(wide)
        return self.lora_magnitude.to(wide) / self.row_norm(self.weight.to(wide) + self.scale * b @ a)


@twin("DORA-LEAD", says="raised", source="an input required to have three dimensions")
class NeedsThreeDimensions(Layer):
    def dora(self, x: Tensor) -> Tensor:
        if x.dim() == 1:
            raise RuntimeError("expected at least two dimensions")
        return super().dora(x)


@twin("DORA-INIT", says="a fresh lora_magnitude", source="a magnitude initialised to one")
class StartsWithMagnitudeOne(Layer):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if self.use_dora:
            nn.init.ones_(self.lora_magnitude)


@twin(
    "DORA-TRAINABLE",
    says="lora_magnitude.requires_grad is False",
    dtypes=("float32",),
    source="a magnitude kept as a buffer",
)
class FreezesTheMagnitude(Layer):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if self.use_dora:
            self.lora_magnitude.requires_grad_(False)


@twin("DORA-FINITE-SIZE", says="worst", dtypes=("float16",), source="squares summed in float16")
class SquaresInHalfPrecision(Layer):
    def row_norm(self, weight: Tensor) -> Tensor:
        return (weight.half() * weight.half()).sum(1).sqrt().float()
