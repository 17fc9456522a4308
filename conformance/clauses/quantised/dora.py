"""DoRA on a packed base: its magnitude and its norm are those of Ŵ, and not of the codes or of the weight packed."""

from __future__ import annotations

from typing import Any

import torch

from conformance.clauses.dora.oracle import DoraOracle
from conformance.clauses.quantised.case import DTYPES, SMALL, PackedCase
from conformance.clauses.quantised.oracle import PackedOracle
from conformance.clauses.quantised.packed_operands import PackedOperands, adapted, operands_of
from conformance.clauses.quantised.packed_values import blocks_of
from conformance.clauses.quantised.storage_state import LAYERS, require_kept, stored_in
from conformance.judgement.judge import judge, worst
from conformance.judgement.linear_oracle import Expected
from conformance.judgement.outcomes import require
from conformance.numerics.formats import Array, format_of, numbers
from conformance.specification.clause import clause
from conformance.target.adapter_tensors import MAGNITUDE, adapter_of, fill_magnitude
from conformance.target.subject import TRAINABLE, Instance, Subject

# no zero rows, which have no direction; rank and width are moderate, so that no row of Ŵ + s·B A comes near zero
DORA = SMALL.narrowed(content=("spread", "codes"), k=(32, 17, 64), training=(True, False))


class PackedDora(DoraOracle):
    """Expected values of DoRA on a packed base: those on Ŵ, with the roundings that a packed base may add."""

    operands: PackedOperands

    def _rows(self, rows: Array, base: Array, down: Array, up: Array) -> Array:
        number, _ = blocks_of(self.operands.case)
        packed = PackedOracle(self.operands)
        turned = number if rows is self.x else number.T
        return super()._rows(rows, base, down, up) + packed._of_storage(rows, base, turned)


def built(subject: Subject, case: PackedCase) -> tuple[Instance, PackedOperands]:
    """The case's adapted layer with DoRA, as it begins but for A and B."""
    operands = operands_of(subject, case)
    instance = adapted(subject, operands, use_dora=True)
    instance.tensors[MAGNITUDE] = adapter_of(instance.module, MAGNITUDE)
    return instance, operands


@clause(
    "QNT-DORA-INIT",
    sentence="""The magnitude of DoRA on a packed base begins as the length of each row of Ŵ, in a floating point dtype
    of at least 16 bits.""",
    why="The length of rows of codes, or of the weight before packing, begins with another layer than the base.",
    cases=DORA,
    dtypes=DTYPES,
    subjects=LAYERS,
    feature="packed_dora",
    weight=0.5,
)
def test_magnitude(subject: Subject, case: PackedCase) -> float | None:
    instance, operands = built(subject, case)
    m, rows = instance.tensors[MAGNITUDE], operands.values["weight"]
    wide = m.dtype.is_floating_point and m.dtype.itemsize > 1
    require(wide, f"lora_magnitude is {m.dtype}: expected a floating point dtype of at least 16 bits")
    require(m.requires_grad, "lora_magnitude does not require grad: expected it trainable")
    norm = (rows**2).sum(1) ** 0.5
    # stored once in m's dtype; Ŵ may be stored in the compute dtype, and the squares are accumulated
    how = operands.rounding
    allowed = norm * (format_of(m.dtype).unit + 2 * how.unit + how.accumulation(operands.case.k))
    return judge(m.detach().flatten(), Expected("the magnitude", norm, allowed, m.dtype))


@clause(
    "QNT-DORA",
    sentence="""DoRA on a packed base gives y, dX, dA, dB and dm of a DoRA layer with the weight Ŵ: the norm is that of
    the rows of Ŵ + s·B A. The storage stays as it is.""",
    cases=DORA,
    dtypes=DTYPES,
    subjects=LAYERS,
    feature="packed_dora",
    weight=0.5,
)
def test_dora(subject: Subject, case: PackedCase) -> float | None:
    instance, operands = built(subject, case)
    layer, case = instance.module, operands.case
    before = stored_in(subject, layer, (case.n, case.k))
    m = instance.tensors[MAGNITUDE]
    fill_magnitude(m, (m.detach().flatten() * (1 + 0.25 * torch.arange(case.n) / case.n)).to(m.dtype))
    conventions: dict[str, Any] = {
        "differentiated": subject.follows("dora_norm", "differentiated"),
        "scaled": subject.follows("dora_bias", "scaled"),
    }
    oracle = PackedDora(operands, numbers(m), **conventions)
    instance.require_grad((*TRAINABLE, MAGNITUDE))
    y = instance.forward()
    instance.backward(y)
    ratio = worst(
        judge(y, oracle.y()), *(judge(instance.gradient(n), oracle.gradient(n)) for n in (*TRAINABLE, MAGNITUDE))
    )
    require_kept(subject, before, layer, "a step with DoRA")
    return ratio
