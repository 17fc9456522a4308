"""Dropout acts in training, on the adapter path only, with scaling by 1/(1-p); backward uses the forward's mask."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from conformance.cases.linear_case import LinearCase
from conformance.cases.operands import Operands
from conformance.cases.seeding import seed_torch
from conformance.clauses.linear_and_layer.case_spaces import SMALL
from conformance.clauses.linear_and_layer.judged_results import judge_gradients, oracle_for
from conformance.judgement.judge import compare, judge, worst
from conformance.judgement.linear_oracle import Expected, LinearOracle
from conformance.judgement.outcomes import Inconclusive, require
from conformance.numerics.formats import Array, format_of, numbers
from conformance.specification.clause import clause
from conformance.target.subject import TRAINABLE, Instance, Subject

NO_DROPOUT = "dropout had not acted"  # the pattern of a result that equals the one without dropout
WITH_DROPOUT = ("lora_linear", "LinearLoRA", "TritonLinearLoRA")
RATES = (0.5, 0.25, 0.1)
# r = k = n with lora_A = lora_B = I and W = 0: y is x (pre) or the update (post) after dropout.
PROBE = SMALL.narrowed(
    special=("identity",),
    values=("normal",),
    k=(64, 33, 17),
    m=(65, 33, 17),
    scale=(1.0, 2.0),
    dropout=RATES,
    position=("post", "pre"),
    training=(True,),
)
DROPPED = SMALL.narrowed(values=("normal",), dropout=RATES, position=("post", "pre"), training=(True,))


def started(subject: Subject, operands: Operands, needs: tuple[str, ...] = TRAINABLE, **options: Any) -> Instance:
    """An instance built right after seeding torch with the case, so that its mask depends on the case alone."""
    seed_torch(operands.case.seed)
    instance = subject.build(operands, **options)
    instance.require_grad(needs)
    return instance


def read_mask(y: torch.Tensor, operands: Operands) -> Array:
    """The mask of an identity probe, 0 or 1/(1-p) per element.

    Raises:
        Violation: if an element of y is neither zero nor the kept value.
    """
    kept = 1 / (1 - operands.case.dropout)
    full = operands.scale * operands.rows("x") * kept
    got = numbers(y).reshape(full.shape)
    mask = np.where(got != 0, kept, 0.0)
    # at most the roundings of 1/(1-p), of the scale, of each product and of three stores
    allowed = 8 * format_of(operands.dtype).unit * np.abs(full) + 4 * format_of(operands.dtype).step
    compare(
        got,
        Expected(
            "y of the probe",
            np.where(mask > 0, full, 0.0),
            allowed,
            operands.dtype,
            mistakes={NO_DROPOUT: full / kept},
        ),
    )
    return mask


@clause(
    "LIN-DROP-MASK",
    "LAY-DROP-MASK",
    sentence="""Dropout zeroes each element independently with probability p, divides the others by 1-p, and draws a
    new mask in each call.""",
    feature="dropout",
    cases=PROBE,
    subjects=WITH_DROPOUT,
    weight=0.5,
)
def test_dropout_mask(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(case)
    instance = started(subject, operands)
    masks = [read_mask(instance.forward(), operands) > 0 for _ in range(2)]
    require(
        not np.array_equal(masks[0], masks[1]), "two calls dropped the same elements: expected a new mask each call"
    )
    for mask in masks:
        count, p = mask.size, case.dropout
        # six standard deviations of a binomial, which chance exceeds once in 5e8 masks
        spread = 6 * np.sqrt(count * p * (1 - p)) + 1
        dropped = count - int(mask.sum())
        require(
            abs(dropped - count * p) <= spread,
            f"{dropped} of {count} elements were dropped: expected {count * p:.0f} ± {spread:.0f} for p = {p}",
        )
        for axis, name in ((0, "columns"), (1, "rows")):
            # the kept counts of independent elements are binomial; those of shared masks vary far more
            along = mask.shape[axis]
            variance = float(mask.sum(axis).var())
            require(
                variance <= 4 * along * p * (1 - p) + 2,
                f"the kept counts of the {name} vary by {variance:.3g}: expected about "
                f"{along * p * (1 - p):.3g} for elements dropped independently",
            )
    return None


@clause(
    "LIN-DROP-BWD",
    "LAY-DROP-BWD",
    sentence="Backward uses the forward's mask for every gradient, under gradient checkpointing too.",
    why="A backward pass with a mask of its own differentiates another function than the one that was computed.",
    feature="dropout",
    cases=PROBE,
    subjects=WITH_DROPOUT,
    weight=0.5,
)
def test_dropout_gradients(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(case)
    instance = started(subject, operands)
    if case.seed % 2:
        plain = instance.call
        instance.call = lambda x: checkpoint(plain, x, use_reentrant=False)
    y = instance.forward()
    torch.rand(3)  # a backward that draws again must not find the generator where the forward left it
    instance.backward(y)
    mask = read_mask(y, operands)
    if mask.all() or not mask.any():
        raise Inconclusive("the mask keeps everything, or nothing")
    return judge_gradients(instance, oracle_for(subject, operands, mask=mask))


@clause(
    "LIN-DROP-REL",
    "LAY-DROP-REL",
    sentence="""With dropout, at any shape, ⟨g, y - base⟩ = ⟨dA, A⟩ = ⟨dB, B⟩ with base = x Wᵀ + b: forward and
    backward use one mask, and the base uses none.""",
    feature="dropout",
    cases=DROPPED,
    subjects=WITH_DROPOUT,
    dtypes=("float64", "float32"),
    weight=0.5,
)
def test_dropout_relation(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(case)
    return judge_relation(started(subject, operands), oracle_for(subject, operands))


def judge_relation(instance: Instance, plain: LinearOracle) -> float | None:
    """Judge ⟨g, y - base⟩ = ⟨dA, A⟩ = ⟨dB, B⟩ after a forward and a backward pass with dropout."""
    operands = instance.operands
    y = instance.forward()
    instance.backward(y)
    values, terms = operands.values, plain.y.terms
    base = terms["base"] + terms.get("bias", 0.0)
    update = float((operands.values["g"] * (numbers(y) - base)).sum())
    allowed = _inner_budget(operands, plain.y, values["g"])
    ratios = []
    for name in ("lora_A", "lora_B"):
        gradient = instance.gradient(name)
        require(gradient is not None, f"{name} has no gradient")
        assert gradient is not None
        product = float((numbers(gradient) * values[name]).sum())
        total = allowed + _inner_budget(operands, plain.gradient(name), values[name])
        if abs(update) < 4 * total:
            raise Inconclusive("the relation is within the budget of zero")
        short = name[-1]
        ratios.append(
            compare(
                np.array([product]),
                Expected(f"⟨d{short}, {short}⟩ against ⟨g, y - base⟩", np.array([update]), np.array([total]), y.dtype),
            )
        )
    return worst(*ratios)


def _inner_budget(operands: Operands, expected: Expected, weights: Array) -> float:
    # dropout multiplies the kept elements, and their errors, by 1/(1-p)
    assert expected.budget is not None
    return float((np.abs(weights) * expected.budget).sum()) / (1 - operands.case.dropout)


@clause(
    "LIN-DROP-POST",
    "LAY-DROP-POST",
    sentence="""Post dropout acts on the adapter's output only: each element of y is the base's, or the base's plus
    s·U/(1-p), where U = (x Aᵀ) Bᵀ.""",
    feature="dropout",
    cases=DROPPED.narrowed(position=("post",)),
    subjects=WITH_DROPOUT,
    position="post",
    weight=0.5,
)
def test_dropout_on_the_output(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(case)
    instance = started(subject, operands)
    y = instance.forward()
    instance.backward(y)
    plain = oracle_for(subject, operands)
    update = plain.y.terms["adapter"] / (1 - case.dropout)
    base = plain.y.value - plain.y.terms["adapter"]
    got = numbers(y)
    require(got.shape == base.shape, f"y has shape {list(got.shape)}: expected {list(base.shape)}")
    kept = np.abs(got - base - update) < np.abs(got - base)
    assert plain.y.budget is not None
    unclear = np.abs(update) < 4 * plain.y.budget / (1 - case.dropout)
    if unclear.mean() > 0.25:
        raise Inconclusive("dropped and kept elements cannot be told apart")
    mask = kept / (1 - case.dropout)
    masked = oracle_for(subject, operands, mask=mask)
    ratio = judge(y, dataclasses.replace(masked.y, mistakes={NO_DROPOUT: plain.y.value}))
    return ratio if unclear.any() else worst(ratio, judge_gradients(instance, masked))


@clause(
    "LIN-DROP-ALL",
    "LAY-DROP-ALL",
    sentence="""With dropout at p = 1 in training, y has the base layer's values, dX = g W, and dA and dB are zero
    or None.""",
    feature="full_dropout",
    cases=SMALL.narrowed(dropout=(1.0,), position=("post", "pre"), training=(True,)),
    subjects=WITH_DROPOUT,
    weight=0.34,
)
def test_dropout_of_everything(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(case)
    instance = started(subject, operands)
    y = instance.forward()
    if y.requires_grad:
        instance.backward(y)
    dropped = {"pre": case.k, "mid": case.r, "post": case.n}[operands.case.position]
    mask = np.zeros((*case.leading, dropped))
    oracle = oracle_for(subject, operands, mask=mask)
    remaining = {name: part for name, part in oracle.y.terms.items() if name != "adapter"}
    plain = oracle_for(subject, operands)
    expected = dataclasses.replace(
        oracle.y, terms=remaining if len(remaining) > 1 else {}, mistakes={NO_DROPOUT: plain.y.value}
    )
    dX = dataclasses.replace(oracle.dX, terms={}, mistakes={NO_DROPOUT: plain.dX.value})
    ratio = judge(y, expected)
    for name in ("lora_A", "lora_B"):
        gradient = instance.gradient(name)
        require(gradient is None or not numbers(gradient).any(), f"the gradient of {name} is not zero at p = 1")
    return worst(ratio, judge(instance.gradient("x"), dX))


@clause(
    "LIN-DROP-EVAL",
    "LAY-DROP-EVAL",
    sentence="Outside training, dropout does nothing.",
    feature="dropout",
    cases=DROPPED.narrowed(training=(False,), values=("integers", "normal")),
    subjects=WITH_DROPOUT,
    weight=0.34,
)
def test_no_dropout_in_evaluation(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(case)
    instance = started(subject, operands)
    y = instance.forward()
    oracle = oracle_for(subject, operands)
    if subject.follows("eval_mode", "merged"):
        return judge(y, oracle.y)  # a merged adapter has no gradient
    instance.backward(y)
    return worst(judge(y, oracle.y), judge_gradients(instance, oracle))


@clause(
    "LIN-DROP-SEED",
    "LAY-DROP-SEED",
    sentence="The mask follows torch's seed: the same seed gives the same output.",
    feature="dropout",
    cases=PROBE,
    subjects=WITH_DROPOUT,
    level="SHOULD",
    weight=0.25,
)
def test_dropout_follows_the_seed(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(case)
    first, second = (started(subject, operands).forward() for _ in range(2))
    require(torch.equal(first, second), "two calls after torch.manual_seed with one seed differ")
    return None
