"""The products of a backend's four methods: integer products with exactly the noise that the backend declares."""

from __future__ import annotations

import numpy as np
import torch

from conformance.clauses.fhe.noise_statistics import judge_columns, judge_row_to_row
from conformance.clauses.fhe.target_backend import (
    PRODUCT,
    PRODUCTS,
    SUBJECT,
    BackendCase,
    decrypted,
    encrypted,
    evaluated,
    judge_product,
    made,
    offered,
    operands,
    product,
)
from conformance.isolation.process_state import kept
from conformance.judgement.outcomes import require
from conformance.specification.clause import clause
from conformance.target.expected_errors import quiet
from conformance.target.subject import Subject

ROWS = 200


@clause(
    "FHE-BACKEND-PRODUCT",
    sentence="""decrypt(evaluate(encrypt(q), W)) is q Wᵀ for every result that fits the range together with eight
    standard deviations σ of the declared noise: exactly if 8σ < 1/2, otherwise within 8σ.""",
    cases=PRODUCTS,
    dtypes=(),
    subjects=SUBJECT,
)
def test_backend_product(subject: Subject, case: BackendCase) -> float | None:
    offer = offered(subject)
    q, weight = operands(case, offer)
    judge_product(offer, product(offer.backend, q, weight, offer.keys()), q, weight)
    return None


@clause(
    "FHE-BACKEND-NOISE",
    sentence="""The noise of results has mean zero and the declared standard deviation, and is independent from row to
    row. Where this noise nearly always rounds to zero, results are wrong no more often than it predicts.""",
    cases=PRODUCT.narrowed(m=(ROWS,), k=(2,), n=(2,)),
    dtypes=(),
    subjects=SUBJECT,
    weight=0.01,
)
def test_backend_noise(subject: Subject, case: BackendCase) -> float | None:
    offer = offered(subject)
    q, weight = operands(case, offer)
    noise = product(offer.backend, q, weight, offer.keys()) - (q @ weight.t()).numpy()
    sigma = offer.sigma(weight.numpy())
    judge_columns(noise, sigma, what="noise of results", spread=offer.spread)
    judge_row_to_row(noise, sigma)
    return None


@clause(
    "FHE-BACKEND-BOUND",
    sentence="""evaluate refuses a weight under which noise could reach a result, or the result is right: for rows whose
    absolute values sum to 2^(b-2) and less.""",
    why="The noise of a result grows with the weight, and a range check of the result does not see it.",
    cases=PRODUCT.narrowed(k=(3, 33), how=("1", "3", "5", "7")),
    dtypes=(),
    subjects=SUBJECT,
    weight=0.67,
)
def test_backend_bound(subject: Subject, case: BackendCase) -> float | None:
    offer = offered(subject)
    random = np.random.default_rng([case.seed, case.m, case.k, case.n])
    size = max(1, 2 ** (offer.bits - 1 - int(case.how)) // case.k)
    weight = torch.from_numpy(size * random.choice([-1, 1], (case.n, case.k)))
    law = getattr(offer.backend, "noise_std", None)
    if law is None:  # a backend with a general law of noise claims no results without noise
        return None
    q = torch.zeros(case.m, case.k, dtype=torch.int64)
    q[:, 0] = 1
    keys, refused = offer.keys(), (ValueError, TypeError, RuntimeError)
    ciphertext = encrypted(offer.backend, q, keys)
    try:
        with quiet():
            result = offer.backend.evaluate(ciphertext, weight, keys.evaluation)
    except refused:
        return None
    raw = decrypted(offer.backend, result, len(q), len(weight), keys)
    judge_product(offer, raw, q, weight, f"the result of rows of ±{size}")
    return None


@clause(
    "FHE-BACKEND-EMPTY",
    sentence="A batch of zero rows can be encrypted, evaluated and decrypted, and the result has shape [0, N].",
    cases=PRODUCT.narrowed(m=(0,)),
    dtypes=(),
    subjects=SUBJECT,
    weight=0.34,
)
def test_backend_empty_batch(subject: Subject, case: BackendCase) -> float | None:
    offer = offered(subject)
    q, weight = operands(case, offer)
    product(offer.backend, q, weight, offer.keys())
    return None


@clause(
    "FHE-BACKEND-BYTES",
    sentence="""A newly made backend can evaluate and decrypt from the bytes alone: messages and keys contain
    everything that is needed.""",
    why="Client and server are different processes.",
    cases=PRODUCT.narrowed(how=("evaluate", "decrypt")),
    dtypes=(),
    subjects=SUBJECT,
    weight=0.34,
)
def test_backend_works_from_bytes(subject: Subject, case: BackendCase) -> float | None:
    offer, other = offered(subject), made(subject)
    q, weight = operands(case, offer)
    keys = offer.keys()
    ciphertext = encrypted(offer.backend, q, keys)
    server, client = (other, offer.backend) if case.how == "evaluate" else (offer.backend, other)
    result = evaluated(server, ciphertext, weight, bytes(bytearray(keys.evaluation)))
    raw = decrypted(client, result, len(q), len(weight), keys)
    judge_product(offer, raw, q, weight, f"the result of a backend made anew for {case.how}")
    return None


@clause(
    "FHE-BACKEND-OPERANDS",
    sentence="""q and W may have any strides. A product modifies neither of them, and changes no global setting and no
    random state.""",
    cases=PRODUCT.narrowed(how=("transposed", "every other column", "packed")),
    dtypes=(),
    subjects=SUBJECT,
    weight=0.5,
)
def test_backend_operands(subject: Subject, case: BackendCase) -> float | None:
    offer = offered(subject)
    given = operands(case, offer)
    q, weight = (_strided(t, case.how) for t in given)
    keys = offer.keys()
    with kept("a product"):
        raw = product(offer.backend, q, weight, keys)
    for name, now, before in zip(("q", "weight"), (q, weight), given, strict=True):
        require(torch.equal(now, before), f"{name} was modified in place")
    judge_product(offer, raw, *given, f"the result of operands that are {case.how}")
    return None


def _strided(t: torch.Tensor, how: str) -> torch.Tensor:
    if how == "transposed":
        return t.t().contiguous().t()
    if how == "every other column":
        wide = torch.full((len(t), 2 * t.shape[1]), 77, dtype=torch.int64)
        wide[:, ::2] = t
        return wide[:, ::2]
    return t.clone()
