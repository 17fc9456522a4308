"""A backend as another project might write it, and the decorator that registers known-bad twins of it.

The scheme is a toy version of learning with errors (Regev, 2005): ``b = ⟨a, s⟩ + q·2^(64-bits) + e`` modulo 2^64. An
integer combination of ciphertexts encrypts the same combination of the inputs. The dimension is too small to be
secure. The backend has no base class and needs only NumPy. ``loraspec run tests.targets.lattice --group fhe`` judges
it.
"""

from __future__ import annotations

import hashlib
import secrets
import struct
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from tests.known_bad import record

DIMENSIONS = 16
HEAD = struct.Struct("<4s16sQQ32s")  # kind, key id, rows, columns, checksum of everything else


@dataclass(frozen=True)
class Numbers:
    """The parameters that a backend declares."""

    name: str = "lattice, insecure"
    bits: int = 27
    secure: bool = False


@dataclass(frozen=True, repr=False)
class Keys:
    """A secret vector and the id of the key pair; adding ciphertexts needs no evaluation key."""

    secret: bytes
    evaluation: bytes


class Lattice:
    """`reference.Backend` on matrices of 64-bit integers.

    Args:
        error: the standard deviation of e, in units of one step of the result.
    """

    def __init__(self, error: float = 0.0) -> None:
        self.parameters = Numbers()
        self.error = error

    def noise_std(self, weight: torch.Tensor) -> torch.Tensor:
        """Return σ of each column's error: each input's error is multiplied by its weight."""
        return self.error * weight.double().norm(dim=1)

    def keygen(self) -> Keys:
        self.warn()
        s = self.random(DIMENSIONS * 8)
        whose = hashlib.sha256(s).digest()[:16]
        return Keys(self.seal(b"SECR", whose, 0, 0, s), self.seal(b"EVAL", whose, 0, 0, b""))

    def encrypt(self, q: torch.Tensor, keys: Any) -> bytes:
        whose, _, _, held = self.opened(b"SECR", keys.secret)
        s = np.frombuffer(held, np.uint64)
        self.check("q", q)
        half = 1 << (self.parameters.bits - 1)
        if q.numel() and not 0 <= int(q.min()) <= int(q.max()) < half:
            raise ValueError(f"q is from {int(q.min())} to {int(q.max())}: expected 0 to {half - 1}")
        a = np.frombuffer(self.random(q.numel() * DIMENSIONS * 8), np.uint64).reshape(*q.shape, DIMENSIONS)
        e = np.rint(self.normal(q.shape) * self.error * self.unit).astype(np.int64).astype(np.uint64)
        b = a @ s + q.numpy().astype(np.uint64) * np.uint64(self.unit) + e
        return self.seal(b"CIPH", whose, *q.shape, a.tobytes() + b.tobytes())

    def evaluate(self, ciphertext: bytes, weight: torch.Tensor, evaluation: bytes) -> bytes:
        self.check("weight", weight)
        whose, rows, features, held = self.opened(b"CIPH", ciphertext)
        self.same(whose, self.opened(b"EVAL", evaluation)[0])
        if not len(weight) or weight.shape[1] != features:
            raise ValueError(f"weight is {list(weight.shape)}: expected [N, {features}]")
        a, b = self.halves(held, rows, features)
        w = weight.numpy().astype(np.uint64)
        return self.seal(b"PROD", whose, rows, len(w), (w @ a).tobytes() + (b @ w.T).tobytes())

    def decrypt(self, result: bytes, rows: int, columns: int, keys: Any) -> torch.Tensor:
        whose, *shape, held = self.opened(b"PROD", result)
        mine, _, _, s = self.opened(b"SECR", keys.secret)
        self.same(whose, mine)
        if shape != [rows, columns]:
            raise ValueError(f"the result is {shape}: expected [{rows}, {columns}]")
        a, b = self.halves(held, rows, columns)
        phase = b - a @ np.frombuffer(s, np.uint64)
        return torch.from_numpy(self.rounded(phase))

    @property
    def unit(self) -> int:
        """The value that an increment of 1 in the result has in a ciphertext."""
        return 1 << (64 - self.parameters.bits)

    def rounded(self, phase: Any) -> Any:
        """Round to the nearest multiple of the unit and return the signed multiple."""
        return (phase + np.uint64(self.unit // 2)).astype(np.int64) >> (64 - self.parameters.bits)

    def halves(self, held: bytes, rows: int, columns: int) -> tuple[Any, Any]:
        """Return a [rows, columns, dimensions] and b [rows, columns]."""
        numbers = np.frombuffer(held, np.uint64)
        at = rows * columns * DIMENSIONS
        return numbers[:at].reshape(rows, columns, DIMENSIONS), numbers[at:].reshape(rows, columns)

    def random(self, count: int) -> bytes:
        """Return `count` random bytes from the operating system."""
        return secrets.token_bytes(count)

    def normal(self, shape: Any) -> Any:
        """Return independent standard normal numbers."""
        return np.random.default_rng(secrets.randbits(128)).standard_normal(tuple(shape))

    def warn(self) -> None:
        if not self.parameters.secure:
            warnings.warn(f"{self.parameters.name}: for tests alone", stacklevel=3)

    def check(self, name: str, t: torch.Tensor) -> None:
        if t.dtype != torch.int64 or t.ndim != 2 or not t.shape[1]:
            raise ValueError(f"{name} is {t.dtype} {list(t.shape)}: expected int64 with two dimensions")

    def same(self, whose: bytes, mine: bytes) -> None:
        if whose != mine:
            raise RuntimeError("these bytes belong to other keys")

    def seal(self, kind: bytes, whose: bytes, rows: int, columns: int, held: bytes) -> bytes:
        blank = HEAD.pack(kind, whose, rows, columns, bytes(32))
        return HEAD.pack(kind, whose, rows, columns, hashlib.sha256(blank + held).digest()) + held

    def opened(self, kind: bytes, sealed: Any) -> Any:
        """Check sealed bytes and return their key id, rows, columns and contents."""
        if not isinstance(sealed, bytes) or len(sealed) < HEAD.size or sealed[:4] != kind:
            raise RuntimeError(f"these bytes are not a {kind.decode()}")
        _, whose, rows, columns, checksum = HEAD.unpack_from(sealed)
        held = sealed[HEAD.size :]
        if checksum != hashlib.sha256(HEAD.pack(kind, whose, rows, columns, bytes(32)) + held).digest():
            raise RuntimeError(f"the {kind.decode()} is damaged")
        return whose, rows, columns, held


class Right:
    """A target that exposes only a backend."""

    backend: type[Lattice] = Lattice
    error = 0.0

    def fhe_backend(self) -> Lattice:
        return self.backend(self.error)


def backend_breaks(clause: str, *, says: str, error: float = 0.0) -> Any:
    """Return a decorator that registers a backend as a known-bad twin."""

    def register(kind: type) -> type:
        target = type(kind.__name__, (Right,), {"backend": kind, "error": error})()
        record(kind.__name__, target, clause, groups=("fhe",), says=says, dtypes=())
        return kind

    return register
