"""Merging on a packed base: refused, done into a new floating point layer, or, where declared, requantised."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from torch import nn

from conformance.clauses.quantised.case import DTYPES, SMALL, PackedCase
from conformance.clauses.quantised.packed_operands import PackedOperands, adapted, operands_of, packed_base
from conformance.clauses.quantised.packed_values import blocks_of
from conformance.clauses.quantised.storage_state import LAYERS, require_kept, stored_in
from conformance.judgement.judge import judge, worst
from conformance.judgement.linear_oracle import Expected
from conformance.judgement.outcomes import require
from conformance.numerics import budget
from conformance.numerics.budget import Rounding
from conformance.numerics.formats import format_of
from conformance.specification.clause import clause
from conformance.target.adapter_tensors import adapter_of
from conformance.target.calls import calling
from conformance.target.expected_errors import quiet, refuses
from conformance.target.subject import Instance, Subject

MERGED = SMALL.narrowed(bias=(True, False))


def built(subject: Subject, case: PackedCase) -> tuple[Instance, PackedOperands, str]:
    """The case's adapted layer, its operands, and the name of its base's class."""
    operands = operands_of(subject, case)
    base = packed_base(subject, operands)
    kind = type(base).__name__
    return adapted(subject, operands, base), operands, kind


@clause(
    "QNT-MERGE-REFUSED",
    sentence="""merge() of a layer on a packed base raises a ValueError that names the class of the base and its format,
    and changes nothing: neither storage nor adapter nor output.""",
    why="""A typical update is smaller than the steps of 4 or 8 bits: requantising rounds it away and reports success.
    Added to the codes themselves it gives another layer.""",
    cases=MERGED,
    dtypes=("float32", "bfloat16"),
    subjects=LAYERS,
    feature="packed_merge",
    convention="packed_merge=refused",
    weight=0.5,
)
def test_merge_refused(subject: Subject, case: PackedCase) -> None:
    instance, operands, kind = built(subject, case)
    layer, case = instance.module, operands.case
    require(
        hasattr(layer, "merge"), f'a {type(layer).__name__} has no merge: declare the feature packed_merge "absent"'
    )
    before, y = stored_in(subject, layer, (case.n, case.k)), instance.forward().detach()
    said = refuses("merge() of a layer on a packed base", layer.merge)
    require(re.search(rf"\b{kind}\b", said) is not None, f"the error {said!r} does not name the class {kind}")
    family = case.format.partition("_")[0]
    require(family in said.lower(), f"the error {said!r} does not name the format {case.format}")
    require_kept(subject, before, layer, "the refused merge()")
    for name in ("lora_A", "lora_B"):
        same = torch.equal(adapter_of(layer, name).detach(), operands.placed[name].tensor)
        require(same, f"the refused merge() changed {name}")
    require(not getattr(layer, "merged", False), "the layer says that it is merged after a refused merge()")
    require(torch.equal(instance.forward().detach(), y), "the output is another one after the refused merge()")


@clause(
    "QNT-MERGE-DEQ",
    sentence="""merge_dequantized gives an nn.Linear with the weight Ŵ + s·B A, rounded once to its floating point
    dtype, and the bias; the weight from before packing has no part in it. The layer stays as it is.""",
    why="The adapter has learnt to correct Ŵ, and not the weight that was packed.",
    cases=MERGED,
    dtypes=DTYPES,
    subjects=LAYERS,
    needs=("merge_dequantized",),
    weight=0.5,
)
def test_merge_dequantized(subject: Subject, case: PackedCase) -> float | None:
    instance, operands, _ = built(subject, case)
    layer, case = instance.module, operands.case
    before = stored_in(subject, layer, (case.n, case.k))
    with calling("merge_dequantized(layer)"):
        merged: Any = subject.target.merge_dequantized(layer)
    kind = type(merged)
    require(kind is nn.Linear, f"merge_dequantized returned a {kind.__name__}: expected an nn.Linear")
    require_kept(subject, before, layer, "merge_dequantized")
    require(hasattr(layer, "lora_A"), "merge_dequantized took the adapter off the layer")
    ratio = judge(merged.weight.detach(), merged_weight(operands, merged.weight.dtype))
    has, shared = merged.bias is not None, merged.bias is getattr(layer, "bias", None)
    require(has is case.bias, f"the merged layer {'has a' if has else 'lacks the'} bias")
    require(not has or not shared, "the merged layer shares its bias with the adapted one")
    if not has:
        return ratio
    bias = operands.values["bias"]
    allowed = format_of(merged.bias.dtype).unit * np.abs(bias) + format_of(merged.bias.dtype).step
    return worst(ratio, judge(merged.bias.detach(), Expected("the bias", bias, allowed, merged.bias.dtype)))


def merged_weight(operands: PackedOperands, dtype: torch.dtype) -> Expected:
    """Ŵ + s·B A, computed in float32 and rounded once."""
    require(dtype.is_floating_point and dtype.itemsize > 1, f"the merged weight is {dtype}: expected floating point")
    values, scale = operands.values, operands.scale
    weight, down, up = values["weight"], values["lora_A"], values["lora_B"]
    update = scale * (up @ down)
    single = Rounding(torch.float32, torch.float32)
    allowed = budget.merged_weight(weight, down, up, scale, single) + 4 * single.unit * np.abs(weight)
    allowed = allowed + format_of(dtype).unit * np.abs(weight + update) + format_of(dtype).step
    return Expected("the merged weight", weight + update, allowed, dtype, {"Ŵ": weight, "update": update})


@clause(
    "QNT-MERGE-BOUND",
    sentence="""By the convention `packed_merge: requantised`, merge() stores Ŵ + s·B A rounded to the format: each
    number is off by at most half the widest step of its block, .15191·absmax (nf4), absmax/6 (fp4), s/2 (int8, int4),
    or max(2^-4·|w|, 2^-10·s) (fp8), and an ulp more; absmax and s are those of the merged numbers. merge() returns
    ‖error‖/‖ΔW‖, and raises a ValueError above ½, with nothing changed. unmerge() restores every byte.""",
    why="""Unmerging by requantising again drifts by as much as a third after five times, and an update of 1 % of the
    weight changes no code at all.""",
    cases=MERGED.narrowed(grouping=("standard", "wide")),
    dtypes=("float32",),
    subjects=LAYERS,
    feature="packed_merge",
    convention="packed_merge=requantised",
    weight=0.5,
)
def test_requantised(subject: Subject, case: PackedCase) -> float | None:
    instance, operands, _ = built(subject, case)
    layer, case = instance.module, operands.case
    before = stored_in(subject, layer, (case.n, case.k))
    _merged_if_held(subject, instance, operands, before)
    update = resized(instance, 2.0)
    with calling("merge()"):
        said = layer.merge()
    numbers, error = _merged(subject, layer, operands, update)
    wanted = operands.values["weight"] + update
    terms = {"update": update, "Ŵ": operands.values["weight"]}
    ratio = None
    if case.format != "hqq":  # its library searches for scales and zero points, and states no bound
        bound = Expected("the requantised weight", wanted, steps(case, wanted), torch.float64, terms)
        ratio = judge(torch.from_numpy(numbers), bound)
    right = isinstance(said, float) and abs(said - error) <= 1e-3 * error + 1e-6
    require(right, f"merge() returned {said!r}: expected ‖error‖/‖ΔW‖ = {error:.4g}")
    with calling("unmerge()"):
        layer.unmerge()
    require_kept(subject, before, layer, "merge() and unmerge()")
    return ratio


def _merged_if_held(subject: Subject, instance: Instance, operands: PackedOperands, before: Any) -> None:
    """Merge an update of 0.2 % of the weight: refused, unless it lies where the codes hold it, as in rows of zeros."""
    layer, update = instance.module, resized(instance, 0.002)
    try:
        with quiet():
            layer.merge()
    except ValueError:
        require_kept(subject, before, layer, "the refused merge()")
        return
    _, error = _merged(subject, layer, operands, update)
    said = f"merge() of an update of 0.2 % of the weight left an error of {error:.3g} of it"
    require(error <= 0.5, f"{said}: expected a ValueError above ½")
    with calling("unmerge()"):
        layer.unmerge()


def _merged(subject: Subject, layer: Any, operands: PackedOperands, update: Any) -> tuple[Any, float]:
    """The stored numbers of a merged layer, and ‖error‖/‖ΔW‖."""
    numbers = stored_in(subject, layer, (operands.case.n, operands.case.k)).numbers
    off = numbers - operands.values["weight"] - update
    return numbers, float(np.linalg.norm(off) / np.linalg.norm(update))


def resized(instance: Instance, share: float) -> Any:
    """The update s·B A after lora_B was scaled so that its norm is this share of that of Ŵ."""
    values, operands = instance.operands.values, instance.operands
    down = values["lora_A"]
    update = operands.scale * (values["lora_B"] @ down)
    factor = share * np.linalg.norm(values["weight"]) / np.linalg.norm(update)
    with torch.no_grad():
        instance.tensors["lora_B"].copy_(torch.from_numpy(values["lora_B"] * factor))
    up = instance.tensors["lora_B"].detach().double().numpy()
    return operands.scale * (up @ down)


def steps(case: PackedCase, wanted: Any) -> Any:
    """How far each number may be from the merged one, by the format: half the widest step between its codes.

    The largest magnitude of a block gives its scale, so that no number is beyond the outermost code by more than that.
    int8 of bitsandbytes rounds to float16 first. Scales are rounded in float32: an ulp of the largest magnitude.
    """
    number, _ = blocks_of(case)
    absmax = np.zeros(int(number.max()) + 1)
    np.maximum.at(absmax, number, np.abs(wanted))
    largest, size = absmax[number], np.abs(wanted)
    off = {
        "nf4": 0.15191 * largest,
        "fp4": largest / 6,
        "int8_bitsandbytes": largest / 254 + size * 2**-11 + 2**-25,
        "int8_torchao": largest / 255,
        "int4": largest / 15,
        "fp8": np.maximum(size / 16, largest / 448 / 1024),
    }[case.format]
    return off + 2**-20 * largest
