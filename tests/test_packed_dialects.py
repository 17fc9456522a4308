"""What packed layers of libraries do otherwise does not hide whether they are right."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor

import reference
from conformance.clauses.quantised.case import PACKABLE, PackedCase, tamed
from conformance.clauses.quantised.held_tensors import memory_of
from conformance.clauses.quantised.memory import LiveMemory
from conformance.clauses.quantised.oracle import PackedOracle
from conformance.clauses.quantised.packed_operands import PackedOperands
from conformance.judgement.result import Result
from conformance.run.case_search import Examination
from conformance.run.profiles import PROFILES
from conformance.specification.clause import load_all
from conformance.target.target import Target


class Few:
    """A target that has the formats of torchao alone."""

    CONFORMANCE: ClassVar[dict[str, Any]] = {
        "features": {f"format_{name}": "absent" for name in PACKABLE if name not in ("int8_torchao", "fp8", "int4")}
    }
    packed_linear = staticmethod(reference.packed_linear)
    patch_linear_module = staticmethod(reference.patch_linear_module)
    packed_fields = staticmethod(reference.packed_fields)
    dequantize_weight = staticmethod(reference.dequantize_weight)


class NaNForZeros(Few):
    """A target whose scale of a row of zeros is 0/0, in fp8."""

    @staticmethod
    def packed_linear(linear: Any, format: str, **options: Any) -> Any:  # noqa: A002
        layer = reference.packed_linear(linear, format, **options)
        if format == "fp8" and not options:
            codes, scale = reference.packed_fields(layer)["fields"].values()
            scale[(codes.float() == 0).all(1)] = torch.nan
        return layer


def in_eight_bits(layer: Any, inputs: tuple[torch.Tensor], y: torch.Tensor) -> torch.Tensor:
    """The output with x rounded to 8 bits by rows in the base product, in eval mode; gradients pass as without."""
    if layer.training:
        return y
    with torch.no_grad():
        x = inputs[0].float()
        step = x.abs().amax(-1, keepdim=True).clamp(min=1e-30) / 127
        moved = (torch.round(x / step) * step - x) @ reference.dequantize_weight(layer).T
    return y + moved.to(y.dtype)


class EightBitInputs(Few):
    """A target that rounds x to 8 bits in eval mode, which it declares."""

    CONFORMANCE: ClassVar[dict[str, Any]] = {"features": {**Few.CONFORMANCE["features"], "packed_inputs": "int8 rows"}}

    @staticmethod
    def packed_linear(linear: Any, format: str, **options: Any) -> Any:  # noqa: A002
        layer = reference.packed_linear(linear, format, **options)
        layer.register_forward_hook(in_eight_bits)
        return layer


class Undeclared(EightBitInputs):
    """The same without the declaration."""

    CONFORMANCE = Few.CONFORMANCE


class LosesTheUpdate(EightBitInputs):
    """The same, and without the update in eval mode."""

    @staticmethod
    def patch_linear_module(orig_linear: Any, **options: Any) -> Any:
        layer = reference.patch_linear_module(orig_linear, **options)

        def without(layer: Any, inputs: tuple[torch.Tensor], y: torch.Tensor) -> torch.Tensor:
            down, up = layer.lora_A.weight, layer.lora_B.weight
            return y if layer.training else y - layer.scale * ((inputs[0].to(down.dtype) @ down.T) @ up.T).to(y.dtype)

        layer.register_forward_hook(without)
        return layer


@functools.cache
def judged(kind: type, name: str) -> Result:
    """What the suite says of a target by one clause in float32; a row of zeros in fp8 takes more cases to meet."""
    clause = load_all(["quantised"])[name]
    (subject,) = Target.of(kind(), kind.__name__).subjects(clause)
    return Examination(clause, subject, "float32", PROFILES["default" if kind is NaNForZeros else "quick"]).run()


def failing(kind: type, names: Iterable[str]) -> list[str]:
    """Of these clauses those that a target fails."""
    return [name for name in names if judged(kind, name).status != "pass"]


def test_a_layer_loads_the_state_of_one_in_the_same_format_whatever_a_target_has() -> None:
    assert not failing(Few, ["QNT-KEEP-LOAD"])


def test_packing_that_gives_nan_is_judged_by_the_clauses_on_packing_alone() -> None:
    packing = ["QNT-FMT-FP8", "QNT-PACK"]
    layers = ["QNT-FWD", "QNT-BWD-DX", "QNT-KEEP-MODES", "QNT-DROP-BWD", "QNT-ADAPTER"]
    assert failing(NaNForZeros, [*packing, *layers]) == packing
    assert "were packed as other numbers, such as [nan]" in str(judged(NaNForZeros, "QNT-FMT-FP8").message)


EVAL = ["QNT-FWD-BASE", "QNT-BWD-MODES", "QNT-DROP-BASE"]


def test_a_layer_may_round_x_to_8_bits_in_eval_mode_if_it_declares_it() -> None:
    assert not failing(EightBitInputs, EVAL)
    assert failing(Undeclared, EVAL) == EVAL


def test_a_lost_update_shows_beside_rounded_inputs() -> None:
    assert failing(LosesTheUpdate, EVAL[1:]) == EVAL[1:]


@pytest.mark.parametrize("name", [*PACKABLE, "hqq"])
def test_a_base_near_the_largest_number_fits_its_dtype(name: str) -> None:
    for seed in range(12):
        case = PackedCase(m=3, k=64, n=16, r=3, seed=seed, dtype="float16", special="near-overflow", format=name)
        oracle = PackedOracle(PackedOperands(case))
        largest = max(abs(oracle.alone()[0].value).max(), abs(oracle.y.value).max())
        assert 0.3 * 65504 < largest < 0.8 * 65504


def test_the_memory_of_a_wrapper_is_that_of_its_parts() -> None:
    parts = torch.ones(8, 8), torch.ones(8, 8)
    assert memory_of([TwoTensor(*parts)]).keys() == memory_of(parts).keys()
    with LiveMemory() as seen:
        both = TwoTensor(*parts) + 1
    assert seen.most == 2 * parts[0].nbytes
    assert both.shape == (8, 8)


class Shown(torch.Tensor):
    """A weight that dequantises itself, and shows a floating point dtype."""

    def dequantize(self, *_: Any) -> torch.Tensor:
        return self.as_subclass(torch.Tensor)


class Untyped(Few):
    """A target whose adapters are in bfloat16 if no dtype is given and the base has no bias."""

    CONFORMANCE: ClassVar[dict[str, Any]] = {"features": {**Few.CONFORMANCE["features"], "compute_dtype": "absent"}}

    @staticmethod
    def patch_linear_module(orig_linear: Any, *, lora_dtype: Any = None, **options: Any) -> Any:
        dtype = torch.bfloat16 if lora_dtype is None and orig_linear.bias is None else lora_dtype
        return reference.patch_linear_module(orig_linear, lora_dtype=dtype, **options)


class Typed(Untyped):
    """The same for weights that show bfloat16, as those of torchao do if they were packed from it."""

    @staticmethod
    def packed_linear(linear: Any, format: str, **options: Any) -> Any:  # noqa: A002
        layer = reference.packed_linear(linear, format, **options)
        layer.own = nn.Parameter(torch.ones(2, dtype=torch.bfloat16).as_subclass(Shown), requires_grad=False)
        return layer


def test_an_adapter_may_have_the_dtype_that_its_weight_shows() -> None:
    assert not failing(Typed, ["QNT-ADAPTER-DTYPE"])
    assert failing(Untyped, ["QNT-ADAPTER-DTYPE"])


@pytest.mark.parametrize(("kind", "grouping", "divisor"), [("fp8", "special", 2), ("int4", "standard", 8)])
def test_a_case_with_an_identity_has_sizes_that_its_format_divides(kind: str, grouping: str, divisor: int) -> None:
    case = tamed(PackedCase(k=37, n=37, r=37, special="identity", format=kind, grouping=grouping))
    assert case.k == case.n == case.r
    assert case.k % divisor == 0
