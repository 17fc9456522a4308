"""Known-bad twins of DoRA: a norm, or a magnitude, of something else than Ŵ."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import reference
from reference.dora import dora_output
from reference.packed_product import output_dtype
from tests.baselines.quantised import RightLayer, RightPacked, target_of
from tests.known_bad import breaks
from tests.known_bad.quantised.storage import AfterPatching


class RightDora(RightLayer):
    """A layer that computes DoRA where it has a magnitude; `normed` is the weight whose rows are measured."""

    def normed(self) -> Tensor:
        return self.numbers(torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        if self.lora_magnitude is None:
            return super().forward(x)

        def product(t: Tensor) -> Tensor:
            y = self.base(t.to(x.dtype))
            return y if self.bias is None else y - self.bias.to(y.dtype)

        dropout: Any = {"dropout": self.dropout_p, "dropout_position": self.dropout_position, "training": self.training}
        A, B = self.lora_A.weight, self.lora_B.weight
        y = dora_output(product, x, self.normed(), self.bias, A, B, self.scale, self.lora_magnitude, **dropout)
        return y.to(output_dtype(x, self.compute_dtype))


def wrong(says: str, **options: Any) -> Any:
    """A decorator that registers a target, whose layers are of a class, as a twin of QNT-DORA."""

    def register(layer: type[RightDora]) -> type[RightDora]:
        breaks("QNT-DORA", says=says, **options)(target_of(layer))
        return layer

    return register


@wrong("worst    y", source="Nerogar/OneTrainer #1672: the norm of codes")
class MeasuresCodes(RightDora):
    def normed(self) -> Tensor:
        fields = self.packed_weight.fields
        codes = next(iter(fields.values())).float().flatten()
        size = self.out_features * self.in_features
        return codes.repeat(-(-size // len(codes)))[:size].view(self.out_features, self.in_features) + 1.0


@wrong("worst    y", source="a norm that is computed once, before training")
class MeasuresTheBaseAlone(RightDora):
    def normed(self) -> Tensor:
        update = self.lora_B.weight.float() @ self.lora_A.weight.float() * self.scale
        return self.numbers(torch.float32) - update


@wrong("worst    y", source="a magnitude that no call reads")
class IgnoresTheMagnitude(RightDora):
    def forward(self, x: Tensor) -> Tensor:
        base, update = self.base(x), self.update(x)
        return (base + update.to(base.dtype)).to(output_dtype(x, self.compute_dtype))


class LosesTheBase(torch.autograd.Function):
    """The identity with half of the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * 0.0


@wrong("worst    dX", source="the base product under no_grad")
class LosesTheBaseInDX(RightDora):
    def base(self, x: Tensor) -> Tensor:
        halved: Tensor = LosesTheBase.apply(x)  # type: ignore[no-untyped-call]
        return super().base(halved)


@breaks("QNT-DORA-INIT", says="the magnitude", source="the length of the rows before packing")
class BeginsWithTheOriginalRows(RightPacked):
    def packed_linear(self, linear: Any, form: str, **options: Any) -> Any:  # type: ignore[override]
        base = reference.packed_linear(linear, form, **options)
        base.__dict__["rows"] = linear.weight.detach().float().norm(dim=1)
        return base

    def patch_linear_module(self, orig_linear: Any, *arguments: Any, **options: Any) -> Any:
        layer = super().patch_linear_module(orig_linear, *arguments, **options)
        if layer.lora_magnitude is not None:
            layer.lora_magnitude.data.copy_(layer.rows)
        return layer


@breaks("QNT-DORA-INIT", says="the magnitude", source="Nerogar/OneTrainer #1672: the length of rows of codes")
class BeginsWithTheLengthOfCodes(AfterPatching):
    def spoil(self, layer: Any) -> None:
        if layer.lora_magnitude is not None:
            codes = next(iter(layer.packed_weight.fields.values()))
            layer.lora_magnitude.data.fill_(float(codes.float().norm()))


@breaks("QNT-DORA-INIT", says="does not require grad", source="a magnitude kept as a buffer")
class FreezesTheMagnitude(AfterPatching):
    def spoil(self, layer: Any) -> None:
        if layer.lora_magnitude is not None:
            layer.lora_magnitude.requires_grad_(False)
