"""`PackedWeight`, `pack_weight` and `PackedLinear` of reference: what they refuse, and what they store."""

from __future__ import annotations

import pickle
import re
from typing import Any

import pytest
import torch
from torch import nn

import optimized
import reference
from conformance.clauses.quantised.case import PACKABLE, READ, PackedCase, StoredCase, tamed, tamed_stored
from conformance.clauses.quantised.decoded_weight import Stored
from conformance.clauses.quantised.packed_values import drawn
from conformance.clauses.quantised.stored_fields import stored_weight

W = torch.linspace(-1, 1, 8 * 64).view(8, 64)
FORMATS = ("nf4", "fp4", "int8_bitsandbytes", "int8_torchao", "fp8", "int4")


@pytest.mark.parametrize(
    ("format", "options", "message"),
    [
        ("nf5", {}, "format is 'nf5': did you mean 'nf4'? expected nf4, fp4, int8_bitsandbytes"),
        (4, {}, "format is 4: expected nf4"),
        ("gptq", {}, "gptq is only read, because its own library chooses the codes: build a PackedWeight"),
        ("nf4", {"blocksize": 64}, "'blocksize' is no option of nf4: did you mean 'block_size'? expected block_size"),
        ("nf4", {"block_size": 0}, "block_size is 0: expected a positive int"),
        ("nf4", {"nested": 1}, "nested is 1: expected True or False"),
        ("nf4", {"groups": 2}, "'groups' is no option of nf4: expected block_size, nested"),
        ("int4", {"group_size": 48}, "group_size is 48, which does not divide K = 64"),
        ("fp8", {"block_size": (3, 64)}, "block_size[0] is 3, which does not divide N = 8"),
        ("fp8", {"block_size": 64}, "block_size is 64: expected (rows, columns)"),
        ("int8_torchao", {"group_size": 32}, "'group_size' is no option of int8_torchao: it has none"),
    ],
)
def test_a_format_or_an_option_that_does_not_exist_is_refused(format: Any, options: Any, message: str) -> None:  # noqa: A002
    with pytest.raises(ValueError, match=re.escape(message)):
        reference.pack_weight(W, format, **options)
    with pytest.raises(ValueError, match=re.escape(message)):
        reference.packed_linear(nn.Linear(64, 8), format, **options)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.full((2, 64), torch.nan), "weight [2, 64] has 128 elements that are NaN or inf: expected none"),
        (torch.tensor([[1.0, -torch.inf]]), "weight [1, 2] has 1 elements that are NaN or inf"),
        (torch.ones(64), "weight is torch.float32 [64]: expected float32, float16 or bfloat16 [N, K]"),
        (torch.ones(2, 64, dtype=torch.float64), "weight is torch.float64 [2, 64]"),
        (torch.ones(2, 64, dtype=torch.int8), "weight is torch.int8 [2, 64]"),
    ],
)
@pytest.mark.parametrize("format", FORMATS)
def test_a_weight_that_cannot_be_packed_is_refused(format: str, weight: torch.Tensor, message: str) -> None:  # noqa: A002
    with pytest.raises(ValueError, match=re.escape(message)):
        reference.pack_weight(weight, format)


def test_fields_of_another_shape_dtype_or_name_are_refused() -> None:
    fields = dict(reference.pack_weight(W, "nf4").fields)

    def refused(message: str, shape: Any = (8, 64), **changed: Any) -> None:
        given = {name: field for name, field in {**fields, **changed}.items() if field is not None}
        with pytest.raises(ValueError, match=re.escape(message)):
            reference.PackedWeight("nf4", shape, given)

    refused(
        "field codes of a weight [8, 64] in nf4 is uint8 [255, 1]: expected uint8 [256, 1]", codes=fields["codes"][1:]
    )
    refused("field codes of a weight [8, 64] in nf4 is int8 [256, 1]: expected uint8", codes=fields["codes"].char())
    refused(
        "field absmax of a weight [8, 64] in nf4 is float16 [8]: expected float32 [8]", absmax=fields["absmax"].half()
    )
    refused("a weight in nf4 has the fields codes: expected codes, absmax", absmax=None)
    refused("a weight in nf4 has the fields codes, absmax, zero: expected codes, absmax", zero=fields["absmax"])
    refused("shape is (8,): expected (out_features, in_features)", shape=(8,))
    refused("field codes of a weight [8, 32] in nf4 is uint8 [256, 1]: expected uint8 [128, 1]", shape=(8, 32))


@pytest.mark.parametrize(("format", "bits"), list(zip(FORMATS, (4.5, 4.5, 8.5, 8.5, 8.5, 9), strict=True)))
def test_the_storage_has_the_bytes_of_its_format(format: str, bits: float) -> None:  # noqa: A002
    weight = reference.pack_weight(W, format)
    assert weight.nbytes == W.numel() * bits / 8
    assert weight.dequantize(torch.bfloat16).dtype == torch.bfloat16
    assert all(field.data_ptr() != W.data_ptr() for field in weight.fields.values())


@pytest.mark.parametrize("format", FORMATS)
def test_optimized_packs_into_the_same_storage(format: str) -> None:  # noqa: A002
    ours, plain = optimized.pack_weight(W, format), reference.pack_weight(W, format)
    assert isinstance(ours, optimized.PackedWeight)
    assert ours.fields.keys() == plain.fields.keys()
    assert all(torch.equal(ours.fields[name], field) for name, field in plain.fields.items())


@pytest.mark.parametrize("format", READ)
def test_stored_fields_of_every_format_are_read(format: str) -> None:  # noqa: A002
    stored: Stored = stored_weight(tamed_stored(StoredCase(k=32, n=16, format=format)))
    weight = reference.PackedWeight(format, stored.shape, stored.fields, stored.options)
    assert torch.equal(weight.dequantize().double(), torch.from_numpy(stored.numbers))


def test_stored_fields_of_gptq_are_of_version_1_unless_they_say_otherwise() -> None:
    stored: Stored = stored_weight(tamed_stored(StoredCase(k=32, n=16, format="gptq")))
    read = [
        reference.PackedWeight("gptq", stored.shape, stored.fields, {"group_size": 8, **version}).dequantize()
        for version in ({}, {"version": 1}, {"version": 2})
    ]
    assert torch.equal(read[0], read[1])
    assert not torch.equal(read[0], read[2])


@pytest.mark.parametrize("format", PACKABLE)
def test_cases_meet_every_code(format: str) -> None:  # noqa: A002
    case = tamed(PackedCase(k=64, n=16, format=format, content="codes"))
    weight = reference.pack_weight(torch.from_numpy(drawn(case)["weight"]).float(), format, **case.options)
    codes = weight.fields["codes"].view(torch.uint8).flatten().int()
    if format in ("nf4", "fp4"):
        codes = torch.cat([codes >> 4, codes & 15])
    signed_zeros = {"fp4": 1, "fp8": 1}.get(format, 0)  # a zero is packed with one of its two signs
    # the lowest code of int4 and torchao's int8 is met where the scale's rounding allows, and in stored fields always
    expected = {"nf4": 16, "fp4": 16, "int4": 15, "int8_bitsandbytes": 255, "int8_torchao": 255, "fp8": 254}[format]
    assert len(codes.unique()) == expected - signed_zeros


def test_a_packed_layer_keeps_its_storage() -> None:
    layer = reference.packed_linear(nn.Linear(64, 8), "nf4", nested=True)
    before = {name: field.clone() for name, field in layer.packed_weight.fields.items()}
    copied = pickle.loads(pickle.dumps(layer.to(torch.bfloat16).double()))
    assert copied.bias.dtype == torch.float64
    for name, field in copied.packed_weight.fields.items():
        assert torch.equal(field, before[name])
        assert field.dtype == before[name].dtype
    with pytest.raises(ValueError, match="is packed: it cannot be initialised again"):
        layer.reset_parameters()


def test_a_packed_layer_refuses_what_it_cannot_be_made_of() -> None:
    weight = reference.pack_weight(W, "nf4")
    with pytest.raises(ValueError, match=re.escape("bias is [7] but weight is [8, 64]: it must be [N]")):
        reference.PackedLinear(weight, torch.zeros(7))
    with pytest.raises(ValueError, match=re.escape("compute_dtype is torch.int8: expected a floating point dtype")):
        reference.PackedLinear(weight, compute_dtype=torch.int8)
    with pytest.raises(
        ValueError, match=re.escape("got a PackedLinear: expected an nn.Linear, whose output is x Wᵀ + b")
    ):
        reference.packed_linear(reference.PackedLinear(weight), "nf4")
    with pytest.raises(
        ValueError, match=re.escape("the weight of this Linear is torch.float32 [8, 64]: expected a packed")
    ):
        reference.dequantize_weight(nn.Linear(64, 8))
    with pytest.raises(ValueError, match="Linear is not packed in a known format: expected a PackedLinear"):
        reference.packed_fields(nn.Linear(64, 8))


def test_a_change_of_the_storage_between_the_passes_is_noticed() -> None:
    layer = reference.patch_linear_module(reference.packed_linear(nn.Linear(64, 8), "nf4"))
    y = layer(torch.ones(2, 64, requires_grad=True))
    with torch.no_grad():
        layer.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
