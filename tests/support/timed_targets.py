"""Small targets whose time is measured, and the only size that the tests of `loraspec bench` measure."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch.nn.functional as F
from torch import nn

from conformance.bench import measurement
from conformance.bench.cases import Size
from conformance.bench.ceilings import Ceilings
from conformance.bench.layers import Contender, Operands, Problem
from conformance.bench.measured_case import MeasuredCase
from conformance.bench.measurement import Pace
from conformance.target.target import Target

SIZE = Size(6, 40, 24, 3)
M, K, N, R = 6, 40, 24, 3
QUICK = Pace(rounds=2, seconds=1e-4)
CEILINGS = Ceilings({"float32": 1e9, "bfloat16": 2e9}, bytes=1e8, product=64, copied=1024)


def plain(x, weight, bias, lora_A, lora_B, scale, *, dropout=0.0, dropout_position="post", training=False):
    """Compute the formula `x Wᵀ + b + s·(x Aᵀ) Bᵀ`, with `post` dropout."""
    update = F.dropout(F.linear(F.linear(x, lora_A) * scale, lora_B), dropout, training)
    assert dropout_position == "post"
    return F.linear(x, weight, bias) + update


def twice(*operands, **options):
    """Compute the formula twice and return the mean."""
    return (plain(*operands, **options) + plain(*operands, **options)) / 2


def too_large(x, *operands, **options):  # noqa: ARG001
    """Refuse every size."""
    raise MemoryError(f"{x.shape[0]} tokens are too many\nand more about it")


def contender(function: Any = plain, name: str = "plain", **declared: Any) -> Contender:
    """Wrap a function as a target with only `lora_linear`."""
    thing = SimpleNamespace(lora_linear=function, CONFORMANCE=declared)
    return Contender(Target.of(thing, name), "lora_linear")


def measured(*contenders: Contender, **problem: Any) -> MeasuredCase:
    """A measurement of the one size of these."""
    return measurement.measure(Problem(SIZE, **{"dtype": "float32", **problem}), contenders, CEILINGS, QUICK)


def layer_of(problem: Problem, function: Any = plain) -> tuple[nn.Module, Operands]:
    """Return a layer built from a function, and its operands."""
    operands = Operands(problem)
    return contender(function).built(problem, operands), operands
