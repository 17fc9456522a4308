"""Known-bad twins of the adapter: its dtype or its shape follows the storage, or it begins with another base."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import reference
from tests.baselines.quantised import RightPacked
from tests.known_bad import breaks
from tests.known_bad.quantised.storage import AfterPatching


def recast(layer: Any, dtype: torch.dtype) -> None:
    """Give the adapter of a layer another dtype."""
    for part in (layer.lora_A, layer.lora_B):
        grad = dtype.is_floating_point
        part.weight = nn.Parameter(part.weight.detach().to(dtype), requires_grad=grad)


class Chooses(RightPacked):
    """A target whose adapters without a lora_dtype have the dtype that `chosen` says."""

    def patch_linear_module(self, orig_linear: Any, *arguments: Any, **options: Any) -> Any:
        layer = super().patch_linear_module(orig_linear, *arguments, **options)
        if options.get("lora_dtype") is None:
            recast(layer, self.chosen(layer))
        return layer

    def chosen(self, layer: Any) -> torch.dtype:
        raise NotImplementedError


@breaks("QNT-ADAPTER", says="lora_A is uint8", source="predibase/lorax #82: the adapter in the packed dtype")
class TakesTheDtypeOfTheCodes(Chooses):
    def chosen(self, layer: Any) -> torch.dtype:
        return layer.weight.dtype  # type: ignore[no-any-return]


@breaks("QNT-ADAPTER", says="lora_A is float8_e4m3fn", source="is_floating_point is True of float8")
class TakesFloat8ForAFloat(Chooses):
    def chosen(self, layer: Any) -> torch.dtype:
        return torch.float8_e4m3fn if layer.format == "fp8" else layer.lora_A.weight.dtype  # type: ignore[no-any-return]


@breaks("QNT-ADAPTER", says="lora_A is [", source="weight.shape[1] of bytes")
class TakesTheShapeOfTheStorage(AfterPatching):
    def spoil(self, layer: Any) -> None:
        columns, rank = layer.weight.shape[1], layer.lora_A.weight.shape[0]
        layer.lora_A.weight = nn.Parameter(torch.zeros(rank, columns, dtype=layer.lora_A.weight.dtype))


@breaks("QNT-ADAPTER", says="bias requires grad", source="only the weight is frozen")
class LeavesTheBiasTrainable(AfterPatching):
    def spoil(self, layer: Any) -> None:
        if layer.bias is not None:
            layer.bias.requires_grad_()


@breaks("QNT-ADAPTER-DTYPE", says="with compute_dtype=", source="float32 whatever the base computes in")
class TakesFloat32Always(Chooses):
    def chosen(self, layer: Any) -> torch.dtype:
        return torch.float32


@breaks("QNT-ADAPTER-DTYPE", says="neither a compute dtype nor a bias", source="torch.get_default_dtype in 16 bits")
class TakesBfloat16WhereNothingSays(Chooses):
    def chosen(self, layer: Any) -> torch.dtype:
        known = layer.compute_dtype is not None or layer.bias is not None
        return layer.lora_A.weight.dtype if known else torch.bfloat16  # type: ignore[no-any-return]


@breaks("QNT-ADAPTER-DTYPE", says="with lora_dtype=", source="an option read only for float bases")
class IgnoresTheDtypeThatIsGiven(RightPacked):
    def patch_linear_module(self, orig_linear: Any, *arguments: Any, **options: Any) -> Any:
        given = options.get("lora_dtype")
        layer = super().patch_linear_module(orig_linear, *arguments, **options)
        if given is not None and "alpha" not in options:
            recast(layer, torch.float64)
        return layer


class OtherInitialisation(RightPacked):
    """A target that does `first` in place of an initialisation that changes W."""

    def patch_linear_module(self, orig_linear: Any, *arguments: Any, **options: Any) -> Any:
        if options.get("lora_A_init_method") in ("pissa", "olora", "corda", "loftq"):
            self.first(orig_linear)
        return super().patch_linear_module(orig_linear, *arguments, **options)

    def first(self, base: Any) -> None:
        raise NotImplementedError


@breaks("QNT-INIT", says="changed", dtypes=("float32",), source="W minus the adapter, packed before the check")
class ChangesTheStorageBeforeItRefuses(OtherInitialisation):
    def first(self, base: Any) -> None:
        packed = reference.pack_weight(base.dequantize() * 1.25, base.format, **base.options)
        for name, field in base.packed_weight.fields.items():
            field.copy_(packed.fields[name])


@breaks("QNT-INIT", says="returned", dtypes=("float32",), source="PiSSA on a base that cannot hold W minus the adapter")
class BeginsWithAnotherBase(RightPacked):
    def patch_linear_module(self, orig_linear: Any, *arguments: Any, **options: Any) -> Any:
        known = {"pissa": "xavier", "olora": "xavier", "corda": "xavier", "loftq": "xavier"}
        if options.get("lora_A_init_method") in known:
            options["lora_A_init_method"] = known[options["lora_A_init_method"]]
        return super().patch_linear_module(orig_linear, *arguments, **options)
