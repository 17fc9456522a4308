"""Security of a backend: it refuses bad operands, wrong keys and damaged bytes, and hides secret keys and inputs."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from conformance.clauses.fhe.leak_search import secret_found
from conformance.clauses.fhe.target_backend import (
    PRODUCT,
    SUBJECT,
    BackendCase,
    Offered,
    Pair,
    encrypted,
    evaluated,
    judge_product,
    new_keys,
    offered,
    operands,
    product,
)
from conformance.judgement.outcomes import require
from conformance.specification.clause import clause
from conformance.target.calls import calling
from conformance.target.expected_errors import refuses
from conformance.target.subject import Subject

REFUSED = (ValueError, TypeError, RuntimeError)

INPUTS: dict[str, Callable[[torch.Tensor, int], torch.Tensor]] = {
    "negative": lambda q, _: q.index_fill(1, torch.tensor([0]), -1),
    "too large": lambda q, half: q.index_fill(1, torch.tensor([0]), half),
    "floats": lambda q, _: q.double(),
    "a vector": lambda q, _: q[0],
    "three dimensions": lambda q, _: q[None],
    "no features": lambda q, _: q[:, :0],
}
WEIGHTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "weight of floats": torch.Tensor.double,
    "weight of one dimension": lambda w: w[0],
    "weight of fewer features": lambda w: w[:, :-1],
    "weight of more features": lambda w: torch.cat([w, w[:, :1]], 1),
}
SHAPES = {"one row less": (-1, 0), "one row more": (1, 0), "one column less": (0, -1), "one column more": (0, 1)}


@clause(
    "FHE-BACKEND-RANGE",
    sentence="""encrypt refuses elements of q below 0 or from 2^(b-1) on, dtypes other than int64, and any q that is
    not a matrix with at least one column. evaluate refuses a weight that is not an int64 matrix with the ciphertext's
    number of features. decrypt refuses numbers of rows or columns that are not those of the result.""",
    cases=PRODUCT.narrowed(how=(*INPUTS, *WEIGHTS, *SHAPES)),
    dtypes=(),
    subjects=SUBJECT,
    weight=2.5,
)
def test_backend_refuses_operands(subject: Subject, case: BackendCase) -> float | None:
    offer = offered(subject)
    q, weight = operands(case, offer)
    keys, how, backend = offer.keys(), case.how, offer.backend
    if how in INPUTS:
        wrong = INPUTS[how](q, 2 ** (offer.bits - 1))
        refuses(f"encrypt of {how}", lambda: backend.encrypt(wrong, keys), types=REFUSED)
        return None
    ciphertext = encrypted(backend, q, keys)
    if how in WEIGHTS:
        operand = WEIGHTS[how](weight)
        refuses(f"evaluate by a {how}", lambda: backend.evaluate(ciphertext, operand, keys.evaluation), types=REFUSED)
        return None
    result = evaluated(backend, ciphertext, weight, keys.evaluation)
    rows, columns = (size + more for size, more in zip((len(q), len(weight)), SHAPES[how], strict=True))
    refuses(f"decrypt of {how}", lambda: backend.decrypt(result, rows, columns, keys), types=REFUSED)
    return None


@clause(
    "FHE-BACKEND-KEYS",
    sentence="""evaluate with another pair's evaluation key, or with a secret key in place of the evaluation key,
    decrypt with another pair's keys, and encrypt with the two keys exchanged are errors: they never return a
    result.""",
    cases=PRODUCT.narrowed(
        how=("another evaluation key", "another secret key", "the secret for the evaluation key", "keys exchanged")
    ),
    dtypes=(),
    subjects=SUBJECT,
    weight=0.67,
)
def test_backend_refuses_other_keys(subject: Subject, case: BackendCase) -> float | None:
    offer = offered(subject)
    q, weight = operands(case, offer)
    keys, others, backend = offer.keys(), offer.keys(1), offer.backend
    ciphertext = encrypted(backend, q, keys)
    result = evaluated(backend, ciphertext, weight, keys.evaluation)
    exchanged = Pair(keys.evaluation, keys.secret)
    calls: dict[str, Callable[[], Any]] = {
        "another evaluation key": lambda: backend.evaluate(ciphertext, weight, others.evaluation),
        "another secret key": lambda: backend.decrypt(result, len(q), len(weight), others),
        "the secret for the evaluation key": lambda: backend.evaluate(ciphertext, weight, keys.secret),
        "keys exchanged": lambda: backend.encrypt(q, exchanged),
    }
    verb = {"another evaluation key": "evaluate", "another secret key": "decrypt", "keys exchanged": "encrypt"}
    refuses(f"{verb.get(case.how, 'evaluate')} with {case.how}", calls[case.how], types=REFUSED)
    judge_product(offer, product(backend, q, weight, keys), q, weight, f"the result after {case.how}")
    return None


MESSAGES = ("ciphertext", "evaluation key", "result", "secret key")
DAMAGES: dict[str, Callable[[bytes, random.Random], Any]] = {
    "empty": lambda _, __: b"",
    "cut off": lambda held, chance: held[: chance.randrange(1, len(held))],
    "longer": lambda held, _: held + b"\0",
    "changed in a bit": lambda held, chance: _flipped(held, chance.randrange(len(held))),
    "changed in its first byte": lambda held, _: _flipped(held, 0),
    "zeros": lambda held, _: bytes(len(held)),
    "random": lambda held, chance: chance.randbytes(len(held)),
    "text": lambda _, __: b"not what was asked for",
    "no bytes": lambda _, __: None,
}


def _flipped(held: bytes, at: int) -> bytes:
    return held[:at] + bytes([held[at] ^ 0x10]) + held[at + 1 :]


@clause(
    "FHE-BACKEND-DAMAGED",
    sentence="""Damaged ciphertexts, results, evaluation keys and secret keys, and one of these kinds in place of
    another, raise an error: they neither crash nor give a result.""",
    why="A server that can crash or mislead a client by its bytes controls the client.",
    cases=PRODUCT.narrowed(how=tuple(f"{m} {d}" for m in MESSAGES for d in (*DAMAGES, "of another kind"))),
    dtypes=(),
    subjects=SUBJECT,
    weight=7.0,
)
def test_backend_refuses_damaged_bytes(subject: Subject, case: BackendCase) -> float | None:
    offer = offered(subject)
    q, weight = operands(case, offer)
    keys, backend = offer.keys(), offer.backend
    held = {"secret key": keys.secret, "evaluation key": keys.evaluation, "ciphertext": encrypted(backend, q, keys)}
    held["result"] = evaluated(backend, held["ciphertext"], weight, keys.evaluation)
    what = next(m for m in MESSAGES if case.how.startswith(m))
    damage = case.how.removeprefix(what).strip()
    if damage == "of another kind":
        other: Any = held[MESSAGES[MESSAGES.index(what) - 1]]
    else:
        other = DAMAGES[damage](held[what], random.Random(case.seed))
    if other == held[what]:
        return None
    calls: dict[str, Callable[[], Any]] = {
        "ciphertext": lambda: backend.evaluate(other, weight, keys.evaluation),
        "evaluation key": lambda: backend.evaluate(held["ciphertext"], weight, other),
        "result": lambda: backend.decrypt(other, len(q), len(weight), keys),
        "secret key": lambda: backend.decrypt(held["result"], len(q), len(weight), Pair(other, keys.evaluation)),
    }
    refuses(f"a {case.how}", calls[what], types=REFUSED)
    judge_product(offer, product(backend, q, weight, keys), q, weight, f"the result after a {case.how}")
    return None


@clause(
    "FHE-BACKEND-RANDOM",
    sentence="""Two ciphertexts of one matrix differ, and so do two pairs of keys, even if torch, NumPy and Python are
    seeded alike: the randomness comes from the operating system.""",
    why="Whoever knows the seed could otherwise repeat the keys and decrypt.",
    cases=PRODUCT.narrowed(how=("ciphertexts", "keys")),
    dtypes=(),
    subjects=SUBJECT,
    weight=0.34,
)
def test_backend_is_random(subject: Subject, case: BackendCase) -> float | None:
    offer = offered(subject)
    q, _ = operands(case, offer)
    keys = offer.keys()

    def seeded() -> dict[str, bytes]:
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        if case.how == "ciphertexts":
            return {"the ciphertexts of a matrix": encrypted(offer.backend, q, keys)}
        made = new_keys(offer.backend)
        return {"secret keys": made.secret, "evaluation keys": made.evaluation}

    first, second = seeded(), seeded()
    for name, held in first.items():
        require(held != second[name], f"two of {name} are the same, with the random generators seeded alike")
        shared = _shared(held, second[name])
        require(shared < 0.5, f"{shared:.0%} of the bytes of two of {name} are the same and not zero")
    return None


def _shared(a: bytes, b: bytes) -> float:
    """The share of bytes that are equal in both, among the positions where at least one is not zero."""
    first, second = (np.frombuffer(held[: min(len(a), len(b))], np.uint8) for held in (a, b))
    counts = (first != 0) | (second != 0)
    # short messages may consist of an equal header
    return float((first == second)[counts].sum()) / max(1, int(counts.sum())) if counts.sum() > 1000 else 0.0


@clause(
    "FHE-BACKEND-SECRET",
    sentence="""The evaluation key, ciphertexts and results, which a server receives, contain no piece of the secret
    key and no row of the inputs. repr and str of the keys, and repr of the backend, do not show the secret key.""",
    cases=PRODUCT.narrowed(m=(3,), k=(16, 24), n=(2, 4)),
    dtypes=(),
    subjects=SUBJECT,
    weight=0.5,
)
def test_backend_keeps_its_secret(subject: Subject, case: BackendCase) -> float | None:
    offer = offered(subject)
    q, weight = operands(case, offer)
    keys, backend = offer.keys(), offer.backend
    ciphertext = encrypted(backend, q, keys)
    public = {
        "the evaluation key": keys.evaluation,
        "the ciphertext": ciphertext,
        "the result": evaluated(backend, ciphertext, weight, keys.evaluation),
    }
    for name, held in public.items():
        leaks = secret_found(held, keys.secret) or any(piece in held for piece in _pieces(keys.secret))
        require(not leaks, f"{name} holds a piece of the secret key")
        _hides(held, q, name)
    with calling("repr(keys) and repr(backend)"):
        shown = f"{keys!r} {keys!s} {backend!r}".encode()
    pieces = (keys.secret[at : at + 16] for at in range(0, len(keys.secret) - 15, 16))
    kinds = [(repr(piece)[2:-1].encode(), piece.hex().encode()) for piece in pieces if len(set(piece)) > 4]
    leaked = any(text in shown for texts in kinds for text in texts)
    require(not leaked, "a representation of the keys or of the backend shows the secret key")
    return None


def _pieces(secret: bytes) -> Iterator[bytes]:
    """Pieces of the secret key that look random and are longer than a header that public bytes may share."""
    for at in range(0, len(secret) - 63, 8):
        piece = secret[at : at + 64]
        if len(set(piece)) >= 24:
            yield piece


def _hides(held: bytes, q: torch.Tensor, name: str) -> None:
    """Require that the bytes contain no row of q in any of the usual forms."""
    for row in q.numpy():
        for kind in ("<i8", "<i4", "<i2", "u1", "<f8", "<f4"):
            require(row.astype(kind).tobytes() not in held, f"{name} holds a row of the inputs, as {kind}")
        for between in (", ", ",", " "):
            require(between.join(map(str, row)).encode() not in held, f"{name} holds a row of the inputs, as text")


@clause(
    "FHE-BACKEND-INSECURE",
    sentence="keygen warns if parameters.secure is False, and does not warn otherwise.",
    cases=PRODUCT,
    dtypes=(),
    subjects=SUBJECT,
    weight=0.01,
)
def test_backend_warns(subject: Subject, case: BackendCase) -> float | None:  # noqa: ARG001
    offer: Offered = offered(subject)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with calling("keygen()"):
            offer.backend.keygen()
    said = [str(w.message) for w in caught if issubclass(w.category, UserWarning)]
    secure = offer.backend.parameters.secure
    require(secure or bool(said), "keygen() under parameters that are not secure does not warn")
    require(not secure or not said, f"keygen() under secure parameters warns: {'; '.join(said)}")
    return None
