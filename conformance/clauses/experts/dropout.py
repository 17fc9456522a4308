"""Dropout in grouped layers: a mask for each row, on the adapter path only, in training only."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from conformance.cases.seeding import seed_torch
from conformance.clauses.experts.case import SMALL, GroupedCase
from conformance.clauses.experts.forward import FUNCTIONS
from conformance.clauses.experts.grouped import TRAINABLE, Bound, Grouped, bound
from conformance.clauses.experts.oracle import Oracle
from conformance.judgement.judge import compare, judge, worst
from conformance.judgement.linear_oracle import Expected
from conformance.judgement.outcomes import Inconclusive, require
from conformance.numerics.formats import Array, format_of, numbers
from conformance.specification.clause import clause
from conformance.target.subject import Subject

DROPPED = SMALL.narrowed(values=("normal",), dropout=(0.5, 0.25), position=("post", "pre"))
PROBE = DROPPED.narrowed(special=("probe",), m=(33, 65), n=(32, 40), k=(32,), r=(32,), base=(False,), lead=("2d",))


def started(subject: Subject, case: GroupedCase) -> Bound:
    """A call that is bound right after torch is seeded with the case."""
    seed_torch(case.seed)
    instance = bound(subject, Grouped(subject, case))
    instance.require_grad()
    return instance


def mask_of(y: torch.Tensor, grouped: Grouped) -> Array:
    """The mask of a probe's present rows, 0 or 1/(1-p) for each element.

    Raises:
        Violation: if an element of y is neither zero nor the kept value.
    """
    case = grouped.case
    kept = 1 / (1 - case.dropout)
    full = case.scale * grouped.rows("x")[grouped.present] * kept
    got = numbers(y)[grouped.present]
    mask = np.where(got != 0, kept, 0.0)
    # at most the roundings of 1/(1-p), of the scale, of each product and of three stores
    limits = 8 * format_of(grouped.dtype).unit * np.abs(full) + 4 * format_of(grouped.dtype).step
    mistakes = {"dropout had not acted": full / kept}
    compare(got, Expected("y of the probe", np.where(mask > 0, full, 0.0), limits, grouped.dtype, mistakes=mistakes))
    return mask


@clause(
    "EXP-DROP-MASK",
    sentence="""Dropout zeroes each element of each row independently with probability p and divides the others by 1-p:
    no two rows share a mask, of one expert or of several, and each call draws new ones.""",
    cases=PROBE,
    subjects=FUNCTIONS,
    weight=0.5,
)
def test_grouped_dropout_masks(subject: Subject, case: GroupedCase) -> float | None:
    instance, p = started(subject, case), case.dropout
    masks = [mask_of(instance.forward(), instance.grouped) > 0 for _ in range(2)]
    if not masks[0].size:
        raise Inconclusive("no row has an expert")
    require(
        not np.array_equal(masks[0], masks[1]), "two calls dropped the same elements: expected a new mask each call"
    )
    for mask in masks:
        # two of 65 rows of 32 elements agree by chance once in 1e5 masks at p = 1/4, and never in two masks
        alike = len(mask) - len(np.unique(mask, axis=0))
        require(alike <= 1, f"{alike} rows have the mask of another row: expected a mask for each row")
        expected, spread = mask.size * p, 6 * np.sqrt(mask.size * p * (1 - p)) + 1
        dropped = mask.size - int(mask.sum())
        require(
            abs(dropped - expected) <= spread,
            f"{dropped} of {mask.size} elements were dropped: expected {expected:.0f} ± {spread:.0f} for p = {p}",
        )
    return None


@clause(
    "EXP-DROP-BWD",
    sentence="Backward uses the forward's masks for every gradient, under gradient checkpointing too.",
    cases=PROBE,
    subjects=FUNCTIONS,
    weight=0.5,
)
def test_grouped_dropout_backward(subject: Subject, case: GroupedCase) -> float | None:
    instance = started(subject, case)
    if case.seed % 2:
        plain = instance.call
        instance.call = lambda x: checkpoint(plain, x, use_reentrant=False)
    y, grouped = instance.forward(), instance.grouped
    mask = mask_of(y, grouped)
    instance.backward(y)
    present, unit = grouped.present, format_of(grouped.dtype).unit
    full = np.zeros_like(grouped.rows("x"))
    full[present] = case.scale * grouped.rows("g")[present] * mask
    limits = 8 * unit * np.abs(full) + 4 * format_of(grouped.dtype).step
    ratios = [judge(instance.gradient("x"), Expected("dX of the probe", full, limits, grouped.dtype))]
    # with A = B = I, D = mask·g or mask·x stands on the side of the mask: dA = s·(g∘mask)ᵀ x, or s·gᵀ (x∘mask)
    value, limits = np.zeros((case.experts, case.k, case.k)), np.zeros((case.experts, case.k, case.k))
    of_row = np.zeros_like(full)
    of_row[present] = mask
    for e in np.unique(grouped.index[present]):
        own = grouped.index == e
        g, x = grouped.rows("g")[own] * of_row[own], grouped.rows("x")[own]
        if case.position == "pre":
            g, x = grouped.rows("g")[own], x * of_row[own]
        value[e] = case.scale * g.T @ x
        rounding = 8 * unit + grouped.rounding.accumulation(int(own.sum()) + 2)
        limits[e] = case.scale * rounding * (np.abs(g).T @ np.abs(x)) + 8 * format_of(grouped.dtype).step
    for name, symbol in (("lora_A", "dA"), ("lora_B", "dB")):
        expected = Expected(f"{symbol} of the probe", value, limits, grouped.adapter_dtype)
        ratios.append(judge(instance.gradient(name), expected))
    return worst(*ratios)


@clause(
    "EXP-DROP-ALL",
    sentence="With p = 1 every row has the values of the frozen layer, and dA and dB are exactly 0.",
    cases=DROPPED.narrowed(dropout=(1.0,), base=(True,)),
    subjects=FUNCTIONS,
    weight=0.34,
)
def test_grouped_dropout_of_everything(subject: Subject, case: GroupedCase) -> float | None:
    instance = started(subject, case)
    y = instance.forward()
    instance.backward(y)
    frozen = Grouped(subject, dataclasses.replace(case, dropout=0.0))
    frozen.values["lora_B"] = np.zeros_like(frozen.values["lora_B"])
    oracle = Oracle(frozen)
    for name, symbol in (("lora_A", "dA"), ("lora_B", "dB")):
        gradient = instance.gradient(name)
        require(gradient is not None and not bool(gradient.any()), f"{symbol} is not 0 with p = 1")
    return worst(judge(y, oracle.y), judge(instance.gradient("x"), oracle.dX))


@clause(
    "EXP-DROP-EVAL",
    sentence="Without `training` dropout does nothing.",
    cases=DROPPED.narrowed(training=(False,)),
    subjects=FUNCTIONS,
    weight=0.34,
)
def test_grouped_dropout_in_evaluation(subject: Subject, case: GroupedCase) -> float | None:
    instance = started(subject, case)
    y, oracle = instance.forward(), Oracle(instance.grouped)
    instance.backward(y)
    return worst(judge(y, oracle.y), *(judge(instance.gradient(name), oracle.gradient(name)) for name in TRAINABLE))
