"""Dropout's masks: independent of each other, without a graph, and for every subset of gradients."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from conformance.cases.linear_case import LinearCase
from conformance.cases.operands import Operands
from conformance.clauses.linear_and_layer.backward import SUBSETS
from conformance.clauses.linear_and_layer.dropout import PROBE, WITH_DROPOUT, read_mask, started
from conformance.clauses.linear_and_layer.judged_results import judge_gradients, oracle_for
from conformance.judgement.outcomes import Inconclusive, require
from conformance.numerics.formats import Array
from conformance.specification.clause import clause
from conformance.target.subject import TRAINABLE, Subject

OVERLAP = 200  # elements that two places of masks must have in common to be compared


@clause(
    "LIN-DROP-INDEPENDENT",
    "LAY-DROP-INDEPENDENT",
    sentence="No part of a mask comes again elsewhere in it, in the next call's, or in that of another layer.",
    cases=PROBE.narrowed(m=(65, 33), k=(64, 33), dropout=(0.5, 0.25)),
    subjects=WITH_DROPOUT,
    weight=0.5,
)
def test_masks_that_repeat(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(case)
    instance = started(subject, operands)
    dropped = [_dropped(instance.forward(), operands) for _ in range(2)]
    other = subject.build(operands)  # without a new seed
    dropped.append(_dropped(other.forward(), operands))
    for i, name in enumerate(("itself", "the next call's", "another layer's")):
        lag = _repeated(dropped[0], dropped[i], case.dropout, itself=i == 0)
        require(lag is None, f"the mask comes again in {name}, {lag} elements further on")
    return None


def _dropped(y: torch.Tensor, operands: Operands) -> Array:
    """1 for each element that a mask drops, in one dimension."""
    return np.asarray(read_mask(y, operands) == 0, dtype=np.float64).reshape(-1)


def _repeated(a: Array, b: Array, p: float, *, itself: bool) -> int | None:
    """A lag at which far more elements of two masks are both dropped than chance allows; None where there is none."""
    size = 1 << (2 * len(a)).bit_length()
    both = np.fft.irfft(np.conj(np.fft.rfft(a, size)) * np.fft.rfft(b, size), size)
    most = len(a) - OVERLAP
    lags = np.arange(1, most) if itself else np.arange(1 - most, most)
    count = len(a) - np.abs(lags)
    share = np.clip(both[lags] / count, p * p, 1 - 1e-9)
    # Chernoff's bound of a binomial: so many or more are dropped in both places by chance once in e^40
    excess = share * np.log(share / p**2) + (1 - share) * np.log((1 - share) / (1 - p**2))
    found = lags[count * excess > 40]
    return int(found[0]) if len(found) else None


@clause(
    "LIN-DROP-CKPT",
    "LAY-DROP-CKPT",
    sentence="""Dropout in training acts without a graph too: under reentrant checkpointing gradients follow the
    mask in y.""",
    cases=PROBE,
    subjects=WITH_DROPOUT,
    weight=0.25,
)
def test_dropout_without_a_graph(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(case)
    instance = started(subject, operands)
    plain = instance.call
    instance.call = lambda x: checkpoint(plain, x, use_reentrant=True)
    y = instance.forward()
    instance.backward(y)
    mask = read_mask(y, operands)
    return judge_gradients(instance, oracle_for(subject, operands, mask=mask))


@clause(
    "LIN-DROP-NEEDS",
    "LAY-DROP-NEEDS",
    sentence="Gradients follow the mask in y whichever of x, A and B require them.",
    cases=PROBE,
    subjects=WITH_DROPOUT,
    weight=0.5,
)
def test_dropout_and_subsets(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(case)
    needs = SUBSETS[case.seed % len(SUBSETS)]
    instance = started(subject, operands, needs)
    y = instance.forward()
    instance.backward(y)
    mask = read_mask(y, operands)
    if mask.all() or not mask.any():
        raise Inconclusive("the mask keeps everything, or nothing")
    for name in set(TRAINABLE) - set(needs):
        require(instance.gradient(name) is None, f"{name} got a gradient although it does not require one")
    return judge_gradients(instance, oracle_for(subject, operands, mask=mask), needs)
