"""The output of an adapted layer on a packed base."""

from __future__ import annotations

from conformance.clauses.quantised.case import DTYPES, LAYER, PackedCase
from conformance.clauses.quantised.oracle import PackedOracle
from conformance.clauses.quantised.packed_operands import adapted, operands_of
from conformance.judgement.judge import judge
from conformance.specification.clause import clause
from conformance.target.subject import Subject

LAYERS = ("packed_linear",)


@clause(
    "QNT-FWD",
    sentence="""y = x Ŵᵀ + b + s·(x Aᵀ) Bᵀ, where Ŵ are the numbers that the storage stands for, in every format, at any
    sizes: Ŵ may be rounded once to the compute dtype, or the scales applied after the product.""",
    cases=LAYER,
    dtypes=DTYPES,
    subjects=LAYERS,
)
def test_output(subject: Subject, case: PackedCase) -> float | None:
    operands = operands_of(subject, case)
    y = adapted(subject, operands).forward()
    return judge(y, PackedOracle(operands).y)
