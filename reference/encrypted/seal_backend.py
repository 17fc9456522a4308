"""Encrypted integer products packed by tokens: a backend on seal-python that needs no evaluation key."""

import hashlib
import secrets
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import modular, seal_library
from .encryption import Progress, check_key, check_matrix
from .envelope import EVALUATION, INPUTS, RESULT, SECRET, EncryptionError, Envelope
from .keys import Keys
from .noise import wrap
from .packed_noise import SEAL, PackedParameters, check_noise
from .polynomial_layout import FIRST, SECOND, UP, Packing

AT_ONCE = {"cpu": 1 << 22}  # digits of one step of a product: on a CPU they stay in its cache
AT_ONCE_ELSEWHERE = 1 << 26
NAME_BYTES = 32

__all__ = ["SEAL", "PackedParameters", "SealBackend"]


class SealBackend:
    """`Backend` on seal-python, packed by tokens; its results are exact, see `packed_noise`.

    Column k of q is a polynomial, one row a coefficient, and so is column n of the result: ``ct_n = Σ_k W[n, k]·ct_k``.
    For a plain weight these are two integer matrix products on the coefficients, see `modular.Radix`. They touch no
    secret and need no key, so that only the client needs the library. Few rows share a polynomial with further
    features, and further outputs: see `Packing`.

    `Keys.evaluation` is only a name, by which messages under other keys are refused. Keys take 0.3 ms, so that a
    client makes a new pair for each input (`fresh_keys`), which the modules that take the same input share.

    Attributes:
        parameters: the `PackedParameters`.
        fresh_keys, takes_outputs: True.   rows_at_once: the rows of a block.
    Source: Bae, Cheon, Hanrot, Park and Stehlé, plaintext-ciphertext matrix multiplication (ePrint 2024/1284).
    """

    fresh_keys = takes_outputs = True

    def __init__(self, parameters: PackedParameters = SEAL) -> None:
        self.parameters = parameters

    @property
    def rows_at_once(self) -> int:
        """The rows that one set of polynomials holds."""
        return self.parameters.polynomial_size

    def keygen(self) -> Keys:
        """See `Backend`. About 0.3 ms and 16 kB.

        Raises:
            ModuleNotFoundError: if the library is not installed, with the command that installs it.
        """
        library = self._library()
        name = secrets.token_bytes(NAME_BYTES)
        key_id = hashlib.sha256(name).digest()[:16]
        return Keys(
            self._seal(SECRET, key_id, 0, 0, library.new_key().to_string()),
            self._seal(EVALUATION, key_id, 0, 0, name),
        )

    def noise_std(self, weight: Tensor) -> Tensor:
        """The deviation of the noise of results: zero, float64 [N], for every weight that `evaluate` accepts.

        Raises:
            ValueError: for a weight that it refuses.
        """
        check_matrix("weight", weight)
        check_noise(weight, 1, self.parameters)
        return torch.zeros(len(weight), dtype=torch.float64, device=weight.device)

    def encrypt(self, q: Tensor, keys: Keys, *, outputs: int | None = None, progress: Progress | None = None) -> bytes:
        """See `Backend`.

        Args:
            outputs: the columns of the result, by which the packing is chosen; None stands for as many as q has.
        """
        check_matrix("q", q)
        limit = 1 << (self.parameters.bits - 1)
        if q.numel() and (int(q.min()) < 0 or int(q.max()) >= limit):
            raise ValueError(f"q is from {int(q.min())} to {int(q.max())}: expected 0 to {limit - 1}")
        library = self._library()
        key_id, key = self._open_secret(library, keys)
        size = self.parameters.polynomial_size
        packing = Packing.cheapest(len(q), q.shape[1], outputs or q.shape[1], size)
        encryptor, parts = library.encryptor(key), [packing.header()]
        for rows, done in _blocks(q.cpu(), packing.rows):
            polynomials = packing.inputs(rows).numpy().view(np.uint64)
            parts += [modular.written(encryptor(polynomial)).tobytes() for polynomial in polynomials]
            if progress is not None:
                progress(done, len(q))
        return self._seal(INPUTS, key_id, len(q), q.shape[1], b"".join(parts))

    def check_evaluation(self, evaluation: bytes) -> bytes:
        """Refuse bytes that are no name of a key under these parameters; returns the key's id."""
        named = Envelope.open(evaluation, EVALUATION, self.parameters)
        if len(named.contents) != NAME_BYTES:
            raise EncryptionError(f"{EVALUATION} came with invalid contents")
        return named.key_id

    def evaluate(
        self, ciphertext: bytes, weight: Tensor, evaluation: bytes, *, progress: Progress | None = None
    ) -> bytes:
        """See `Backend`. It runs on the device of the weight.

        Raises:
            ValueError: also if rows of the weight are so large that noise could reach a result, see `check_noise`.
        """
        check_matrix("weight", weight)
        if len(weight) == 0:
            raise ValueError(f"weight is {list(weight.shape)}: expected at least one row")
        inputs = Envelope.open(ciphertext, INPUTS, self.parameters)
        if inputs.columns != weight.shape[1]:
            raise ValueError(
                f"weight is {list(weight.shape)} but the ciphertext has {inputs.columns} features: "
                f"its second dimension must be {inputs.columns}"
            )
        check_key(INPUTS, inputs.key_id, "the evaluation key", self.check_evaluation(evaluation))
        packing, blocks = self._opened(inputs, -(-inputs.columns // self._packing(inputs).features), 2 * UP)
        check_noise(weight, packing.outputs, self.parameters)
        p, parts = self.parameters, [packing.header()]
        for i, block in enumerate(blocks):
            planes = np.frombuffer(block, np.uint8).reshape(-1, 2, UP, p.polynomial_size)
            first, second = self._product(weight, planes, packing)
            parts += [_written(first >> p.dropped[0], FIRST)]
            parts += [_written(second >> p.dropped[1], SECOND)]
            if progress is not None:
                progress(min((i + 1) * packing.rows, inputs.rows), inputs.rows)
        return self._seal(RESULT, inputs.key_id, inputs.rows, len(weight), b"".join(parts))

    def result_bytes(self, ciphertext: bytes, columns: int) -> int:
        """See `Backend`."""
        rows, _ = Envelope.shape(ciphertext, INPUTS)
        header = ciphertext[Envelope.HEADER : Envelope.HEADER + Packing.HEADER]
        packing = Packing.read(header, self.parameters.polynomial_size)
        return Envelope.HEADER + Packing.HEADER + -(-rows // packing.rows) * packing.bytes_down(columns)

    def decrypt(
        self, result: bytes, rows: int, columns: int, keys: Keys, *, progress: Progress | None = None
    ) -> Tensor:
        """See `Backend`."""
        sealed = Envelope.open(result, RESULT, self.parameters)
        if (sealed.rows, sealed.columns) != (rows, columns):
            raise EncryptionError(f"{RESULT} is [{sealed.rows}, {sealed.columns}]: expected [{rows}, {columns}]")
        library = self._library()
        key_id, key = self._open_secret(library, keys)
        check_key(RESULT, sealed.key_id, "the secret key", key_id)
        packing = self._packing(sealed)
        number = -(-columns // packing.outputs)
        _, blocks = self._opened(sealed, number, SECOND, number * packing.outputs * packing.rows * FIRST)
        decryptor, places = library.decryptor(key), packing.places().flatten()
        parts = [torch.empty(0, columns, dtype=torch.int64)]
        for i, block in enumerate(blocks):
            pairs = self._restored(block, number, places)
            values = torch.from_numpy(np.stack([decryptor(pair) for pair in pairs]).view(np.int64))
            held = values[:, places].view(number, packing.outputs, packing.rows)
            done = min((i + 1) * packing.rows, rows)
            parts.append(packing.outcome(held, done - i * packing.rows, columns))
            if progress is not None:
                progress(done, rows)
        return wrap(torch.cat(parts), self.parameters.bits)

    def _product(self, weight: Tensor, planes: modular.Planes, packing: Packing) -> tuple[Tensor, Tensor]:
        """The polynomials of the result's ciphertexts modulo q: the first at the places that are read, the second."""
        modulus, radix, device = self.parameters.modulus, modular.radix_for(weight), weight.device
        modular.check(weight, modulus)
        digits = radix.digits(planes).to(device)
        operand = packing.operand(
            digits, lambda: radix.digits(modular.negated(planes, modulus)).to(device), weight.shape[1]
        )
        cut, at_once = packing.places_read, AT_ONCE.get(device.type, AT_ONCE_ELSEWHERE)
        step = max(1, at_once // operand[0].numel() // packing.outputs) * packing.outputs
        joined: list[tuple[Tensor, Tensor]] = []
        for part in torch.split(weight, step):
            products = radix.product(part, operand, modulus)
            if packing.outputs > modular.SUMMED:
                products.remainder_(modulus)
            joined.append((packing.joined_places(products[:, :cut]), packing.joined(products[:, cut:])))
        return tuple(torch.cat(each).remainder_(modulus) for each in zip(*joined, strict=True))  # type: ignore[return-value]

    def _restored(self, block: memoryview, number: int, places: Tensor) -> Any:
        """The ciphertexts [number, 2, n] of a block of results, each coefficient in the middle of what it can be."""
        p = self.parameters
        cut = number * len(places) * FIRST
        found = torch.zeros(number, 2, p.polynomial_size, dtype=torch.int64)
        for j, (part, width) in enumerate(((block[:cut], FIRST), (block[cut:], SECOND))):
            at = places if j == 0 else torch.arange(p.polynomial_size)
            values = _read(part, width).view(number, -1)
            found[:, j, at] = (values << p.dropped[j]).add_(1 << p.dropped[j] - 1).remainder_(p.modulus)
        return found.numpy().view(np.uint64)

    def _library(self) -> seal_library.Library:
        p = self.parameters
        return seal_library.opened(p.polynomial_size, p.modulus, p.bits)

    def _seal(self, kind: str, key_id: bytes, rows: int, columns: int, contents: bytes) -> bytes:
        return Envelope(kind, self.parameters.fingerprint(), key_id, rows, columns, contents).seal()

    def _open_secret(self, library: seal_library.Library, keys: Keys) -> tuple[bytes, Any]:
        sealed = Envelope.open(keys.secret, SECRET, self.parameters)
        return sealed.key_id, library.key_from(sealed.contents)

    def _packing(self, sealed: Envelope) -> Packing:
        try:
            return Packing.read(sealed.contents[: Packing.HEADER], self.parameters.polynomial_size)
        except ValueError as error:
            raise EncryptionError(f"{sealed.kind} came with invalid contents: {error}") from None

    def _opened(self, sealed: Envelope, number: int, width: int, more: int = 0) -> tuple[Packing, list[memoryview]]:
        """The packing and the bytes of each block: `number` polynomials of `width` bytes a coefficient, and `more`."""
        packing = self._packing(sealed)
        length = number * self.parameters.polynomial_size * width + more
        blocks = -(-sealed.rows // packing.rows)
        size, expected = len(sealed.contents), Packing.HEADER + blocks * length
        if size != expected:
            raise EncryptionError(
                f"{sealed.kind} came as {size} bytes: expected {expected} for {sealed.rows} rows of {sealed.columns} "
                "columns"
            )
        contents = memoryview(sealed.contents)
        return packing, [contents[at : at + length] for at in range(Packing.HEADER, size, length)]


def _blocks(q: Tensor, rows: int) -> Iterator[tuple[Tensor, int]]:
    """Blocks of rows, each with the number of rows up to its end."""
    for at in range(0, len(q), rows):
        yield q[at : at + rows], min(at + rows, len(q))


def _written(values: Tensor, width: int) -> bytes:
    """Nonnegative integers as little-endian integers of 4 bytes, followed for a width of 5 by all fifth bytes."""
    held = values.cpu().numpy()
    low: bytes = held.astype("<u4").tobytes()
    return low if width == FIRST else low + (held >> 32).astype(np.uint8).tobytes()


def _read(contents: memoryview, width: int) -> Any:
    """The int64 [numbers] that `_written` wrote."""
    number = len(contents) // width
    held = np.frombuffer(contents, "<u4", number).astype(np.int64)
    if width != FIRST:
        held |= np.frombuffer(contents, np.uint8, number, 4 * number).astype(np.int64) << 32
    return torch.from_numpy(held)
