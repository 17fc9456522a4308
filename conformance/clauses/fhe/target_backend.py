"""The encryption backend of a target by itself: its keys, the operands of a case, and encrypted products."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from conformance.cases.case import Case, Space
from conformance.cases.reproducer_marks import keeps_for_later
from conformance.clauses.fhe.noise_statistics import spread_of
from conformance.clauses.fhe.oracle import Integers, noise_std
from conformance.judgement.outcomes import Inconclusive, require
from conformance.numerics.formats import Array, numbers
from conformance.target.calls import calling
from conformance.target.expected_errors import calling_quietly
from conformance.target.subject import Subject

SUBJECT = ("fhe_backend",)


@dataclass(frozen=True)
class BackendCase(Case):
    """An encrypted product of integers.

    Fields:
        m: rows.   k, n: features in and out.
        values: `bytes` (inputs and weights of about 8 bits, or fewer if the range is narrow), or `ends` (results at
            both ends of the range).
        how: the variant, where a clause has several.
    """

    m: int = 2
    k: int = 3
    n: int = 2
    values: str = "bytes"
    how: str = ""


PRODUCTS = Space(BackendCase, m=(2, 1, 3, 5), k=(3, 1, 2, 17, 33), n=(2, 1, 5, 16), values=("bytes", "ends"))
PRODUCT = PRODUCTS.narrowed(m=(2, 3), k=(3, 5), n=(2, 4), values=("bytes",))


@dataclass(frozen=True)
class Pair:
    """A pair of keys with the attributes that a backend's methods read."""

    secret: bytes
    evaluation: bytes


@dataclass
class Offered:
    """The backend from a target's `fhe_backend()`, with pairs of keys that are made when first needed."""

    backend: Any
    bits: int
    pairs: list[Any] = field(default_factory=list)

    def keys(self, number: int = 0) -> Any:
        """The pair of keys with this number, the same in all cases."""
        while len(self.pairs) <= number:
            self.pairs.append(new_keys(self.backend))
        return self.pairs[number]

    def sigma(self, weight: Integers) -> Array:
        """The standard deviation of each column's noise, as the backend declares it."""
        own = getattr(self.backend, "noise_std", None)
        if own is None:
            with calling("the noise law of fhe_backend().parameters, for want of a noise_std"):
                return noise_std(self.backend.parameters, weight)
        with calling("noise_std(weight)"):
            found = own(torch.from_numpy(weight))
        require(isinstance(found, torch.Tensor), f"noise_std(weight) is a {type(found).__name__}: expected a tensor")
        require(found.shape == (len(weight),), f"noise_std(weight) is {list(found.shape)}: expected [{len(weight)}]")
        sigma = numbers(found)
        require(bool((np.isfinite(sigma) & (sigma >= 0)).all()), "noise_std(weight) is negative or not finite")
        return sigma

    @property
    def spread(self) -> float:
        """The allowed relative difference of one key's variance; zero if the backend declares its own law."""
        own = getattr(self.backend, "noise_std", None)
        return spread_of(self.backend.parameters.polynomial_size) if own is None else 0.0


OFFERED: dict[Any, Offered] = {}


@keeps_for_later
def offered(subject: Subject, *, fresh: bool = False) -> Offered:
    """The target's backend, the same object in all cases unless it is to be a fresh one."""
    if fresh or subject.thing not in OFFERED:
        OFFERED[subject.thing] = Offered(backend := made(subject), bits_of(backend))
    return OFFERED[subject.thing]


def made(subject: Subject) -> Any:
    """A new backend of the target."""
    with calling_quietly("fhe_backend()"):
        return subject.thing()


def bits_of(backend: Any) -> int:
    """The number of bits b; results range from -2^(b-1) to 2^(b-1) - 1."""
    with calling("reading fhe_backend().parameters.bits and .secure"):
        bits, secure = backend.parameters.bits, backend.parameters.secure
    require(isinstance(bits, int) and 2 <= bits <= 62, f"parameters.bits is {bits!r}: expected an int from 2 to 62")
    require(isinstance(secure, bool), f"parameters.secure is {secure!r}: expected True or False")
    return int(bits)


def new_keys(backend: Any) -> Any:
    """A new pair of keys, both of which must be bytes."""
    with calling_quietly("keygen()"):
        keys = backend.keygen()
    for name in ("secret", "evaluation"):
        held = getattr(keys, name, None)
        require(type(held) is bytes, f"keygen().{name} is of type {type(held).__name__}: expected bytes")
    return keys


def operands(case: BackendCase, offer: Offered) -> tuple[torch.Tensor, torch.Tensor]:
    """q [M, K] and a weight [N, K] whose products fit the range, with room for the noise."""
    random = np.random.default_rng([case.seed, case.m, case.k, case.n])
    half = 2 ** (offer.bits - 1)
    if case.values == "bytes":
        top = min(255, half - 1)
        most = max(1, min(127, half // (2 * top * case.k)))
        q = random.integers(0, top + 1, (case.m, case.k))
        weight = random.integers(-most, most + 1, (case.n, case.k))
    else:
        q = np.zeros((case.m, case.k), dtype=np.int64)
        weight = np.zeros((case.n, case.k), dtype=np.int64)
        at = int(random.integers(case.k))
        weight[:, at] = np.where(np.arange(case.n) % 2 == 0, 1, -1)
        q[:, at] = half - 1 - math.ceil(8 * float(offer.sigma(weight).max()))
    largest = int(np.abs(q @ weight.T).max(initial=0))
    if q.min(initial=0) < 0 or largest + 8 * float(offer.sigma(weight).max()) >= half:
        raise Inconclusive("the noise leaves no room for products in the range")
    return torch.from_numpy(q), torch.from_numpy(weight)


def encrypted(backend: Any, q: torch.Tensor, keys: Any) -> bytes:
    """The ciphertext of q, which must be bytes."""
    with calling_quietly("encrypt(q, keys)"):
        ciphertext = backend.encrypt(q, keys)
    require(type(ciphertext) is bytes, f"encrypt(q, keys) is of type {type(ciphertext).__name__}: expected bytes")
    return bytes(ciphertext)


def evaluated(backend: Any, ciphertext: bytes, weight: torch.Tensor, evaluation: bytes) -> bytes:
    """The encrypted result, which must be bytes."""
    with calling_quietly("evaluate(ciphertext, weight, evaluation)"):
        result = backend.evaluate(ciphertext, weight, evaluation)
    require(type(result) is bytes, f"evaluate(…) is of type {type(result).__name__}: expected bytes")
    return bytes(result)


def decrypted(backend: Any, result: bytes, rows: int, columns: int, keys: Any) -> Array:
    """The decrypted result, which must be int64 [M, N]."""
    with calling_quietly("decrypt(result, rows, columns, keys)"):
        raw = backend.decrypt(result, rows, columns, keys)
    require(isinstance(raw, torch.Tensor), f"decrypt(…) is a {type(raw).__name__}: expected a tensor")
    require(raw.dtype == torch.int64, f"decrypt(…) has dtype {raw.dtype}: expected torch.int64")
    require(tuple(raw.shape) == (rows, columns), f"decrypt(…) is {list(raw.shape)}: expected [{rows}, {columns}]")
    return np.asarray(raw.cpu().numpy())


def product(backend: Any, q: torch.Tensor, weight: torch.Tensor, keys: Any) -> Array:
    """The product q Wᵀ, computed by encrypting, evaluating and decrypting."""
    result = evaluated(backend, encrypted(backend, q, keys), weight, keys.evaluation)
    return decrypted(backend, result, len(q), len(weight), keys)


def judge_product(offer: Offered, raw: Array, q: torch.Tensor, weight: torch.Tensor, what: str = "the result") -> None:
    """Require that a decrypted result is q Wᵀ, within eight standard deviations of the declared noise.

    Raises:
        Violation: with the worst element.
    """
    exact = (q @ weight.t()).numpy()
    require(raw.shape == exact.shape, f"{what} is {list(raw.shape)}: expected {list(exact.shape)}")
    allowed = np.broadcast_to(np.floor(8 * offer.sigma(weight.numpy()) + 0.5 - 1e-9), exact.shape)
    off = np.abs(raw - exact) - allowed
    if not off.size or off.max() <= 0:
        return
    at = np.unravel_index(int(np.argmax(off)), off.shape)
    wrong = int((off > 0).sum())
    bound = f"± {allowed[at]:.3g}, eight deviations" if allowed[at] else "exactly, as 8σ is below 1/2"
    place = ", ".join(map(str, at))
    require(False, f"{what} differs in {wrong} of {off.size}: at [{place}] {raw[at]}, expected {exact[at]} {bound}")
