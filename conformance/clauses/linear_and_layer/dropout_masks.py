"""Dropout masks: independent of each other, active under no_grad, used for every subset of gradients."""

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

OVERLAP = 200  # the least number of elements in which two shifted masks are compared


@clause(
    "LIN-DROP-INDEPENDENT",
    "LAY-DROP-INDEPENDENT",
    sentence="No block of a mask repeats within it, in the next call, or in another layer.",
    why="A kernel that draws every block or every call from the same seed adds correlated noise.",
    feature="dropout",
    cases=PROBE.narrowed(m=(65, 33), k=(64, 33), dropout=(0.5, 0.25)),
    subjects=WITH_DROPOUT,
    weight=0.5,
)
def test_masks_that_repeat(subject: Subject, case: LinearCase) -> float | None:
    operands = subject.operands(case)
    instance = started(subject, operands)
    dropped = [_dropped(instance.forward(), operands) for _ in range(2)]
    other = subject.build(operands)  # another layer, built without seeding torch again
    dropped.append(_dropped(other.forward(), operands))
    for i, name in enumerate(("itself", "the next call's", "another layer's")):
        lag = _repeated(dropped[0], dropped[i], case.dropout, itself=i == 0)
        require(lag is None, f"the mask repeats in {name}, {lag} elements further on")
    return None


def _dropped(y: torch.Tensor, operands: Operands) -> Array:
    """A flat array with 1 for each element that the mask drops."""
    return np.asarray(read_mask(y, operands) == 0, dtype=np.float64).reshape(-1)


def _repeated(a: Array, b: Array, p: float, *, itself: bool) -> int | None:
    """A lag at which two masks both drop far more elements than chance allows, or None."""
    size = 1 << (2 * len(a)).bit_length()
    both = np.fft.irfft(np.conj(np.fft.rfft(a, size)) * np.fft.rfft(b, size), size)
    most = len(a) - OVERLAP
    lags = np.arange(1, most) if itself else np.arange(1 - most, most)
    count = len(a) - np.abs(lags)
    share = np.clip(both[lags] / count, p * p, 1 - 1e-9)
    # Chernoff's bound of a binomial: by chance so many elements are dropped in both masks once in e^40
    excess = share * np.log(share / p**2) + (1 - share) * np.log((1 - share) / (1 - p**2))
    found = lags[count * excess > 40]
    return int(found[0]) if len(found) else None


@clause(
    "LIN-DROP-CKPT",
    "LAY-DROP-CKPT",
    sentence="""In training, dropout acts under no_grad too: under reentrant checkpointing, which runs forward
    without a graph first, the gradients use the mask seen in y.""",
    feature="dropout",
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
    sentence="""Whichever subset of x, A and B requires grad, its gradients use the mask seen in y, and the others
    get none.""",
    feature="dropout",
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
