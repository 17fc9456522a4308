"""The adapter of a packed base: its dtype and its shapes, neither of which follows the storage."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from conformance.clauses.quantised.case import DTYPES, SMALL, PackedCase
from conformance.clauses.quantised.packed_operands import PackedOperands, operands_of, packed_base
from conformance.clauses.quantised.storage_state import LAYERS, require_frozen, require_kept, stored_in
from conformance.judgement.outcomes import require
from conformance.numerics.dtypes import ADAPTER_DTYPES
from conformance.numerics.formats import dtype_named
from conformance.specification.clause import clause
from conformance.target.adapter_tensors import adapter_of
from conformance.target.calls import calling
from conformance.target.expected_errors import refuses
from conformance.target.signature import arguments_for
from conformance.target.subject import Subject

SIZES = SMALL.narrowed(bias=(False, True), compute=("none", "float32", "bfloat16"))
ADAPTER = ("lora_A", "lora_B")


def fresh(subject: Subject, case: PackedCase, **options: Any) -> tuple[Any, PackedOperands]:
    """A new layer of the case without values, patched with these options besides its rank."""
    operands = operands_of(subject, case)
    base, patch = packed_base(subject, operands), subject.target.patch_linear_module
    given = arguments_for(patch, {"dim": case.r, **options})
    with calling(f"patch_linear_module({', '.join(f'{key}={value}' for key, value in given.items())})"):
        return patch(base, **given), operands


def _shown(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@clause(
    "QNT-ADAPTER",
    sentence="""A new adapter on a packed base is lora_A [r, in_features] and lora_B [out_features, r] with B = 0, both
    trainable and of one floating point dtype of at least 16 bits, whatever the dtype and shape of the storage; the
    storage and the bias are frozen.""",
    why="An adapter in the dtype of the codes cannot be trained, and one in float8 loses every update.",
    cases=SIZES,
    dtypes=DTYPES,
    subjects=LAYERS,
    weight=0.5,
)
def test_new_adapter(subject: Subject, case: PackedCase) -> None:
    layer, operands = fresh(subject, case)
    case = operands.case
    parts = {name: adapter_of(layer, name) for name in ADAPTER}
    for name, shape in (("lora_A", [case.r, case.k]), ("lora_B", [case.n, case.r])):
        part, got = parts[name], list(parts[name].shape)
        require(got == shape, f"{name} is {got} on a base [{case.n}, {case.k}]: expected {shape}")
        wide = part.dtype.is_floating_point and part.dtype.itemsize > 1
        require(wide, f"{name} is {_shown(part.dtype)}: expected a floating point dtype of at least 16 bits")
        require(part.requires_grad, f"{name} does not require grad: expected it trainable")
    down, up = (_shown(parts[name].dtype) for name in ADAPTER)
    require(down == up, f"lora_A is {down} and lora_B {up}: expected one dtype")
    require(not parts["lora_B"].detach().any(), "lora_B is not zero")
    require_frozen(subject, layer, "after patching")
    for name, parameter in layer.named_parameters():
        frozen = "lora_" in name or not parameter.requires_grad
        require(frozen, f"{name} requires grad after patching: expected it frozen")


@clause(
    "QNT-ADAPTER-DTYPE",
    sentence="""The adapter's dtype is lora_dtype; without it the base's compute_dtype; without that the dtype of a
    floating point bias or scale, or the one that a weight which dequantises itself shows; without either float32.""",
    cases=SIZES,
    dtypes=DTYPES,
    subjects=LAYERS,
    level="SHOULD",
    weight=0.5,
)
def test_adapter_dtype(subject: Subject, case: PackedCase) -> None:
    given = dtype_named(ADAPTER_DTYPES[case.dtype]) if case.seed % 3 == 0 else None
    options = {} if given is None else {"lora_dtype": given}
    layer, operands = fresh(subject, case, **options)
    allowed, what = _allowed(operands, layer) if given is None else ({given}, f"lora_dtype={_shown(given)}")
    got = adapter_of(layer, "lora_A").dtype
    expected = " or ".join(sorted(map(_shown, allowed)))
    require(got in allowed, f"the adapter is {_shown(got)} with {what}: expected {expected}")


def _allowed(operands: PackedOperands, layer: Any) -> tuple[set[torch.dtype], str]:
    """The dtypes that an adapter may have if none is given, and the reason in words."""
    if operands.compute is not None:
        return {operands.compute}, f"compute_dtype={_shown(operands.compute)}"
    scales = dict(operands.stored.fields) if operands.stored else {}
    found = {t.dtype for t in scales.values() if t.is_floating_point() and t.dtype.itemsize > 1}
    found |= {p.dtype for p in layer.parameters() if type(p).dequantize is not torch.Tensor.dequantize}
    if operands.case.bias:
        return found | {operands.dtype}, f"a bias in {_shown(operands.dtype)}"
    return found or {torch.float32}, "neither a compute dtype nor a bias"


@clause(
    "QNT-INIT",
    sentence="""An initialisation that changes the base weight, as pissa, olora, corda and loftq do, is refused on a
    packed base, by the name of the method, before anything changes.""",
    why="The storage cannot hold W minus the adapter, so that the layer would not begin as its base.",
    cases=SMALL,
    dtypes=("float32",),
    subjects=LAYERS,
    feature="initialisation",
    weight=0.25,
)
def test_initialisations(subject: Subject, case: PackedCase) -> None:
    method = ("pissa", "olora", "corda", "loftq")[case.seed % 4]
    operands = operands_of(subject, dataclasses.replace(case, bias=True))
    base = packed_base(subject, operands)
    before = stored_in(subject, base, (operands.case.n, operands.case.k))
    refuses(
        f"patch_linear_module(base, lora_A_init_method={method!r})",
        lambda: subject.target.patch_linear_module(base, lora_A_init_method=method),
        method,
    )
    require(not hasattr(base, "lora_A"), f"lora_A_init_method={method!r} was refused, and the base has an adapter")
    require_kept(subject, before, base, f"the refused lora_A_init_method={method!r}")
