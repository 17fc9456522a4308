"""Dropout in a DoRA layer acts on DoRA's change of the base output, never on the base output itself."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from conformance.cases.linear_case import LinearCase
from conformance.cases.seeding import seed_torch
from conformance.clauses.dora.oracle import DORA, built
from conformance.clauses.linear_and_layer.dropout import NO_DROPOUT, PROBE
from conformance.judgement.judge import compare, judge
from conformance.judgement.linear_oracle import Expected
from conformance.judgement.outcomes import Inconclusive, Violation, require
from conformance.numerics import budget
from conformance.numerics.formats import Array, numbers, rounded
from conformance.specification.clause import clause
from conformance.specification.features import meant
from conformance.target.adapter_tensors import MAGNITUDE, adapter_of, fill_magnitude
from conformance.target.subject import Subject


@clause(
    "DORA-DROP",
    sentence="""With dropout at p = 1 in training, y is the base output x Wᵀ + b, or m′ ⊙ x Wᵀ + b where dropout acts on
    the adapter's term only, and with post dropout it may be either; outside training, dropout does nothing.""",
    feature="dora_dropout dropout",
    cases=DORA.narrowed(dropout=(1.0, 0.5), position=("pre", "post"), training=(True, False)),
    weight=0.5,
)
def test_dropout(subject: Subject, case: LinearCase) -> float | None:
    case = dataclasses.replace(case, dropout=1.0 if case.training else case.dropout)
    on_adapter = drops_the_adapter(subject, case)
    if case.training and not on_adapter and subject.follows("dora_bias", "scaled"):
        case = dataclasses.replace(case, bias=False)  # whether its part of the change is dropped is left open
    instance, oracle = built(subject, case)
    y = instance.forward()
    if not case.training:
        return judge(y, oracle.y())
    if on_adapter:
        return judge(y, dataclasses.replace(oracle.y(update=False), mistakes={NO_DROPOUT: oracle.y().value}))
    base = oracle.x @ oracle.weight.T + (0.0 if oracle.bias is None else oracle.bias)
    alone = budget.row_chain(oracle.x, oracle.weight, oracle.bias, oracle.down, oracle.up, 0.0, oracle.how)
    # the dropped terms (m′-1)·0 and m′·0 add nothing: the base layer and its budget remain
    mistakes = {NO_DROPOUT: oracle.y().value}
    try:
        return judge(
            y, Expected("y at p = 1", base.reshape(y.shape), alone.reshape(y.shape), y.dtype, mistakes=mistakes)
        )
    except Violation:
        if case.position == "pre":
            raise
        return judge(
            y, dataclasses.replace(oracle.y(update=False), mistakes=mistakes)
        )  # post dropout acts on the update only, before the rows are rescaled


@clause(
    "DORA-DROP-PRE",
    sentence="""With pre dropout D, y = x Wᵀ + b + (m′-1) ⊙ D(x) Wᵀ + m′ ⊙ s·(D(x) Aᵀ) Bᵀ: dropout does not act on
    the base output.""",
    feature="dora_dropout dropout",
    cases=PROBE.narrowed(position=("pre",)),
    weight=0.5,
)
def test_pre_dropout(subject: Subject, case: LinearCase) -> float | None:
    return judge_mask(subject, case)


@clause(
    "DORA-DROP-POST",
    sentence="""With post dropout D, y = x Wᵀ + b + D((m′-1) ⊙ x Wᵀ + m′ ⊙ s·(x Aᵀ) Bᵀ): a dropped element leaves
    the base output.""",
    level="SHOULD",
    feature="dora_dropout dropout",
    cases=PROBE.narrowed(position=("post",)),
    position="post",
    weight=0.5,
)
def test_post_dropout(subject: Subject, case: LinearCase) -> float | None:
    return judge_mask(subject, case)


def judge_mask(subject: Subject, case: LinearCase) -> float | None:
    """Judge a layer with W = A = B = I, where each element of y depends on one element of x, kept or dropped."""
    seed_torch(case.seed)
    operands = subject.operands(case)
    operands.values["weight"] = np.eye(case.k)
    instance = subject.build(operands, use_dora=True)
    norm, s = 1 + case.scale, case.scale
    parameter = adapter_of(instance.module, MAGNITUDE)
    magnitude = rounded(np.linspace(0.5, 2.0, case.n), parameter.dtype)
    fill_magnitude(parameter, torch.from_numpy(magnitude))
    factor = magnitude / norm
    x = operands.rows("x")
    y = numbers(instance.forward()).reshape(x.shape)
    whole, adapter = x * ((factor - 1) + factor * s), x * factor * s  # DoRA's change of x, and the adapter's term
    on_adapter = drops_the_adapter(subject, operands.case)
    gone, changed = (x * factor, adapter) if on_adapter else (x, whole)
    kept = gone + changed / (1 - case.dropout)
    mask = np.abs(y - kept) < np.abs(y - gone)
    unit, step = operands.rounding.unit, operands.rounding.step
    # each of the three terms is rounded at most six times: factor, mask, product, scale, cast, sum
    allowed = 8 * unit * (np.abs(x) + np.abs(kept - gone) + 2 * np.abs(adapter) / (1 - case.dropout))
    allowed = allowed + 8 * unit * np.abs(gone) * on_adapter
    # each of these 18 stores is off by up to half a step among subnormal numbers, times the factors after it
    allowed = allowed + 9 * step * np.maximum(1, np.abs(factor)) * max(1, abs(s)) / (1 - case.dropout)
    if (np.abs(kept - gone) <= 2 * allowed).mean() > 0.2:
        raise Inconclusive("kept and dropped elements cannot be told apart")
    dropped = 1 - mask.mean()
    require(
        abs(dropped - case.dropout) <= 6 * np.sqrt(case.dropout / mask.size) + 0.2,
        f"{dropped:.0%} of x were dropped: expected {case.dropout:.0%}",
    )
    mistakes = {NO_DROPOUT: x + whole}
    if operands.case.position != "mid":
        mistakes |= _other_convention(
            y, x, x * factor, whole / (1 - case.dropout), adapter / (1 - case.dropout), on_adapter
        )
    expected = np.where(mask, kept, gone)
    return compare(y, Expected("y of the probe", expected, allowed, operands.dtype, mistakes=mistakes))


def _other_convention(
    y: Array, base: Array, rescaled: Array, whole: Array, adapter: Array, on_adapter: bool
) -> dict[str, Array]:
    """By its words the y of the convention that the target does not declare, with the mask that fits it best.

    Args:
        whole, adapter: DoRA's change and the adapter's term, where they are kept.
    """
    gone, changed = (base, whole) if on_adapter else (rescaled, adapter)
    words = "DoRA's change of the output" if on_adapter else "the adapter's term alone"
    remark = meant("dora_dropout", "change" if on_adapter else "adapter")
    kept = np.abs(y - gone - changed) < np.abs(y - gone)
    return {f"dropout acted on {words}{remark}": gone + np.where(kept, changed, 0.0)}


def drops_the_adapter(subject: Subject, case: LinearCase) -> bool:
    """Whether dropout acts on the adapter's term only, as it always does between lora_A and lora_B."""
    return case.position == "mid" or subject.follows("dora_dropout", "adapter")
