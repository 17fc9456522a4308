"""The operands of an adapted layer on a packed base, and the layer that the target makes of them."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from conformance.cases.operand_values import largest_forward
from conformance.cases.operands import Operands
from conformance.clauses.quantised import packed_values
from conformance.clauses.quantised.case import PACKABLE, PackedCase, tamed
from conformance.clauses.quantised.decoded_weight import Stored
from conformance.judgement.outcomes import Inconclusive, require
from conformance.judgement.recording import note
from conformance.numerics.budget import Rounding
from conformance.numerics.formats import Array, dtype_named, format_of, numbers, rounded
from conformance.target.adapter_tensors import adapter_of
from conformance.target.calls import calling
from conformance.target.signature import arguments_for
from conformance.target.subject import TRAINABLE, Instance, Subject, frozen_linear


class PackedOperands(Operands):
    """Operands of a case, whose weight is the one to pack until a base is made of it, and then Ŵ.

    Attributes:
        compute: the compute dtype, or None.   computes: the dtype of the base product, given or not.
        stored: what the base's storage holds; None before, and for a target without `packed_fields`.
        eight_bit_x: whether the base rounds x to int8 rows, as the convention `packed_inputs: int8 rows` has it.
    """

    case: PackedCase

    def __init__(self, case: PackedCase, device: str = "cpu") -> None:
        super().__init__(case, device)
        self.compute = None if case.compute == "none" else dtype_named(case.compute)
        self.computes = self.compute or self.computed_in
        for name in {"x", "g", "bias"} & {*self.values}:  # representable in the compute dtype too
            self.values[name] = rounded(rounded(self.values[name], self.dtype), self.computes)
        if case.update == "small":
            self.values["lora_B"] = self.values["lora_B"] / 1024  # a power of two keeps it representable
        self.values["weight"] = rounded(packed_values.drawn(case)["weight"], self.dtype)
        if case.special == "near-overflow":  # the weight to pack is another one than x was sized for
            large = largest_forward(self.values["x"].reshape(-1, case.k), self.values, self.scale, 1.0)
            self.values["x"] = rounded(self.values["x"] * (0.7 * format_of(self.dtype).largest / large), self.dtype)
        if self.compute is not None:
            self.computed_in = self.dtype  # autocast then changes the update alone
        self.stored: Stored | None = None
        self.eight_bit_x = False

    @property
    def rounding(self) -> Rounding:
        """The rounding of the sums: the base's in the coarser of compute and output dtype."""
        coarse = max((self.dtype, self.computes, self.computed_in), key=lambda dtype: format_of(dtype).unit)
        adapter = self.adapter_dtype if self.case.autocast == "off" else dtype_named(self.case.autocast)
        return Rounding(coarse, adapter, "expanded" in (self.case.x, self.case.g))

    @cached_property
    def linear(self) -> nn.Linear:
        """The layer to pack."""
        return frozen_linear(self)


def fitted(subject: Subject, case: PackedCase) -> PackedCase:
    """The case in a format and a dropout position that the target has, with a compute dtype only where it takes one."""
    offered = [name for name in PACKABLE if not subject.lacks(f"format_{name}")]
    offered += ["hqq"] if subject.follows("format_hqq", "packed") else []
    if case.format not in offered and offered:
        case = dataclasses.replace(case, format=offered[case.seed % len(offered)])
    nested = case.grouping == "special" and case.format in ("nf4", "fp4")
    if subject.lacks("nested_absmax") if nested else subject.follows("block_sizes", "standard"):
        case = dataclasses.replace(case, grouping="standard")
    if subject.lacks("compute_dtype"):
        case = dataclasses.replace(case, compute="none")
    if subject.dropout_positions and case.position not in subject.dropout_positions:
        case = dataclasses.replace(case, position=subject.dropout_positions[0])
    return tamed(case)  # another format may need other sizes


def unchecked_base(subject: Subject, operands: PackedOperands) -> Any:
    """The case's layer, packed by the target, whether or not the numbers that its storage stands for are finite."""
    note(options={})
    case = operands.case
    options = dict(case.options)
    if operands.compute is not None:
        options["compute_dtype"] = operands.compute
    pack = getattr(subject.target, "packed_linear", subject.thing)
    with calling(f"packed_linear(linear, {', '.join([repr(case.format), *(f'{k}={v}' for k, v in options.items())])})"):
        base = pack(operands.linear, case.format, **options)
    operands.values["weight"], operands.stored = decoded(subject.target, base, (case.n, case.k))
    return base


def packed_base(subject: Subject, operands: PackedOperands) -> Any:
    """The case's layer, packed by the target; the operands then hold the numbers that its storage stands for.

    Raises:
        Inconclusive: if one of these is NaN or infinite. Clauses on packing judge that; no sum with it is right.
    """
    base = unchecked_base(subject, operands)
    lost, size = int((~np.isfinite(operands.values["weight"])).sum()), operands.values["weight"].size
    if lost:
        what = f"{lost} of {size} numbers that are not finite"
        raise Inconclusive(f"the storage of a finite weight in {operands.case.format} stands for {what}")
    return base


def decoded(target: Any, base: Any, shape: tuple[int, int]) -> tuple[Array, Stored | None]:
    """Ŵ of a base from its stored fields, or, without `packed_fields`, as the target dequantises it."""
    if hasattr(target, "packed_fields"):
        with calling("packed_fields(base)"):
            found = target.packed_fields(base)
        stored = Stored.read(found)
        require(stored.shape == shape, f"packed_fields says shape {stored.shape}: expected {shape}")
        return stored.numbers, stored
    return numbers(dequantized(target, base, shape)), None


def dequantized(target: Any, base: Any, shape: tuple[int, int]) -> torch.Tensor:
    """Ŵ [N, K] in float32 by the target's `dequantize_weight`, or the base's `dequantize`."""
    named = getattr(target, "dequantize_weight", None)
    with calling("dequantize_weight(base)" if named else "base.dequantize()"):
        found: Any = named(base) if named else base.dequantize()
    require(isinstance(found, torch.Tensor), f"dequantize_weight returned {type(found).__name__}: expected a tensor")
    require(tuple(found.shape) == shape, f"dequantize_weight gives shape {list(found.shape)}: expected {list(shape)}")
    require(found.dtype == torch.float32, f"dequantize_weight gives {found.dtype}: expected torch.float32")
    return found.detach()  # type: ignore[no-any-return]


def adapted(subject: Subject, operands: PackedOperands, base: Any = None, **options: Any) -> Instance:
    """The case's layer, packed and patched by the target, with the adapter of the case.

    Args:
        base: a packed base of these operands; by default a new one.
        options: further keyword arguments of `patch_linear_module`.
    """
    base = packed_base(subject, operands) if base is None else base
    case, patch = operands.case, subject.target.patch_linear_module
    alpha = case.scale * case.r
    given = {"dim": case.r, "alpha": int(alpha) if float(alpha).is_integer() else alpha, **options}
    given |= {"lora_dtype": operands.adapter_dtype}
    if case.dropout:
        given |= {"dropout": case.dropout, "dropout_position": case.position}
    given = arguments_for(patch, given)
    with calling(f"patch_linear_module({', '.join(f'{k}={v}' for k, v in given.items())})"):
        layer = patch(base, **given)
        layer.train(case.training)
    tensors = {"x": operands.placed["x"].tensor}
    for name in ("lora_A", "lora_B"):
        parameter, values = adapter_of(layer, name), operands.placed[name].tensor
        got, want = f"{parameter.dtype} {list(parameter.shape)}", f"{values.dtype} {list(values.shape)}"
        require(got == want, f"{name} is {got}: expected {want}")
        with torch.no_grad():
            parameter.copy_(values)
        tensors[name] = parameter
    return Instance(layer, tensors, operands, module=layer)


def operands_of(subject: Subject, case: PackedCase) -> PackedOperands:
    """The operands of a case that the target can have."""
    operands = PackedOperands(fitted(subject, case), subject.device)
    operands.eight_bit_x = not case.training and subject.follows("packed_inputs", "int8 rows")
    return operands


def run(subject: Subject, operands: PackedOperands, **options: Any) -> Instance:
    """Run forward and backward once, with the gradients of x, A and B."""
    instance = adapted(subject, operands, **options)
    instance.require_grad(TRAINABLE)
    instance.backward(instance.forward())
    return instance
