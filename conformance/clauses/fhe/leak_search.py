"""Search of recorded traffic for secrets, in every form they might have: floats, integers, text, base64."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Iterator

import numpy as np
import torch

from conformance.clauses.fhe.oracle import by_row
from conformance.numerics.formats import Array

LEAST = 8  # bytes of a pattern, too many for a match by chance
WINDOW = 512  # bytes of a secret key in one search pattern; each may hold a single bit of the key
TEXT = re.compile(rb"[A-Za-z0-9+/_=\r\n-]{16,}")
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
INTEGERS = ("<i8", "<i4", "<i2", "u1")


def searchable(traffic: Iterable[bytes], public: bytes = b"") -> bytes:
    """All recorded bytes, and those that they contain encoded in base64 or hexadecimal.

    Args:
        public: the evaluation key, which may cross the wire; it is left out, because its size would dominate.
    """
    texts = [text.replace(public, b"|") if public else text for text in traffic]
    return b"|".join([*texts, *(decoded for text in texts for decoded in _decoded(text))])


def numbers_found(text: bytes, planted: dict[str, Array], n_bits: int) -> dict[str, str]:
    """The names of the planted numbers that cross the wire, each with the form that was found.

    Args:
        text: the result of `searchable`.   planted: matrices of numbers by name; the target may quantise their rows.
    """
    found = {}
    for name, values in planted.items():
        for form, pattern in forms(values, n_bits):
            if pattern in text:
                found[name] = form
                break
    return found


def secret_found(text: bytes, secret: bytes) -> bool:
    """Whether a piece of a secret key crosses the wire."""
    pieces = [secret[at : at + WINDOW] for at in range(0, max(1, len(secret) - WINDOW + 1), WINDOW)]
    return any(piece in text for piece in pieces if sum(map(bool, piece)) >= LEAST * 2)


def forms(values: Array, n_bits: int) -> Iterator[tuple[str, bytes]]:
    """The forms of a matrix: neighbouring elements as floats, whole rows as integers, single elements as text."""
    matrix = np.atleast_2d(values)
    flat = np.ascontiguousarray(matrix).reshape(-1)
    for dtype in FLOATS:
        held = torch.from_numpy(flat.copy()).to(dtype)
        raw, width = held.view(torch.uint8).numpy().tobytes(), dtype.itemsize
        count = max(2, LEAST // width)
        for at in range(0, len(flat) - count + 1, count):
            yield f"{count} neighbours as {dtype}", raw[at * width : (at + count) * width]
    for value in flat:
        if abs(value) >= 1e-3:
            yield "decimal text", _truncated(float(value))
            yield "decimal text", f"{value:.4f}".encode()
    for rows in (matrix, matrix.T):
        if rows.shape[1] < LEAST:
            continue
        q = by_row(np.ascontiguousarray(rows), n_bits).values
        for row in q:
            for integers in (row, row - 2 ** (n_bits - 1)):
                for kind in INTEGERS:
                    yield f"a row quantised, as {kind}", integers.astype(kind if n_bits <= 8 else "<i2").tobytes()
                for between in (", ", ",", " "):
                    yield "a row quantised, as text", between.join(str(int(i)) for i in integers).encode()


def _truncated(value: float) -> bytes:
    """The first digits, which are equal in float32 and float64."""
    sign, digits = ("-" if value < 0 else ""), np.format_float_positional(abs(value), unique=False, precision=12)
    return (sign + digits[:8]).encode()


def _decoded(text: bytes) -> Iterator[bytes]:
    """The bytes that a text contains in base64 or hexadecimal, for every possible start."""
    for match in TEXT.finditer(text):
        run = re.sub(rb"[\r\n]", b"", match.group()).replace(b"-", b"+").replace(b"_", b"/")
        for start in range(4):
            part = run[start:].partition(b"=")[0]
            yield base64.b64decode(part[: len(part) // 4 * 4])
            with_rest = part + b"=" * (-len(part) % 4)
            if len(part) % 4 != 1:
                yield base64.b64decode(with_rest)
        for digits in re.findall(rb"[0-9a-fA-F]{16,}", run):
            for start in range(2):
                even = digits[start:]
                yield binascii.unhexlify(even[: len(even) // 2 * 2])
