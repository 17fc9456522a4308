"""Encrypted integer products ``q Wᵀ``: the protocol of a backend, and a backend on concrete-ml-extensions."""

import json
import warnings
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from . import layout
from .envelope import EVALUATION, INPUTS, RESULT, SECRET, EncryptionError, Envelope, Parameters, check_bytes, digest
from .keys import Keys
from .library import check_use, import_library, panics_as_errors, use
from .noise import PARAMETER_SETS, STANDARD_DEVIATION, EncryptionParameters, noise_std, wrap

__all__ = ["Backend", "ConcreteBackend", "EncryptionError", "EncryptionParameters", "Keys", "Progress"]

Progress = Callable[[int, int], object]
"""A callback with the number of finished rows and of all rows, called after each row."""

_T = TypeVar("_T")


class Backend(Protocol):
    """An encryption that can multiply: ``decrypt(evaluate(encrypt(q), W)) = wrap(q Wᵀ + noise)``.

    Evaluation needs only the evaluation key; it reveals the shapes but not q. Messages are bytes that only the same
    backend can read.

    All four methods raise ValueError for a matrix of the wrong shape, dtype or range, and `EncryptionError` for
    damaged bytes and for bytes under other keys or parameters.

    A backend whose noise does not follow `noise.noise_std` of its parameters also has a method ``noise_std(weight)``,
    see `noise_of`. It may have the attributes ``fresh_keys``, by which each input gets a new pair of keys,
    ``rows_at_once``, the rows that a message should have, and ``takes_outputs``, by which `encrypt` is told the number
    of outputs as ``outputs=N``; and the methods ``result_bytes(ciphertext, columns)``, the size of the answer to a
    ciphertext, of which a client reads no more, and ``check_evaluation(evaluation)``, which refuses bytes that are no
    evaluation key: a server calls it before it keeps a key. A backend need not inherit from this class: `loraspec run
    TARGET --group fhe` judges the object that a target's ``fhe_backend()`` returns.
    """

    @property
    def parameters(self) -> Parameters:
        """The parameters; without a method `noise_std`, an `EncryptionParameters`."""
        ...

    def keygen(self) -> Keys:
        """A new pair of keys, with a UserWarning if the parameters are not secure."""
        ...

    def encrypt(self, q: Tensor, keys: Keys, *, progress: Progress | None = None) -> bytes:
        """The ciphertext of q: int64 [M, K], from 0 to 2^(b-1)-1; M may be 0."""
        ...

    def evaluate(
        self, ciphertext: bytes, weight: Tensor, evaluation: bytes, *, progress: Progress | None = None
    ) -> bytes:
        """The encrypted result for a weight, int64 [N, K]."""
        ...

    def decrypt(
        self, result: bytes, rows: int, columns: int, keys: Keys, *, progress: Progress | None = None
    ) -> Tensor:
        """The result, int64 [M, N] as [rows, columns], from -2^(b-1) to 2^(b-1)-1; larger sums wrap."""
        ...


def noise_of(backend: Backend, weight: Tensor) -> Tensor:
    """The standard deviation of the noise that a backend adds to a product, before rounding to integers.

    Args:
        backend: its ``noise_std(weight)`` if it has this method, otherwise `noise.noise_std` of its parameters.
        weight: int64 [N, K].
    Returns:
        float64 [N].
    """
    own: Callable[[Tensor], Tensor] | None = getattr(backend, "noise_std", None)
    if own is not None:
        return own(weight)
    parameters: Any = backend.parameters
    if not hasattr(parameters, "base_log"):
        kind = type(parameters).__name__
        raise TypeError(f"{type(backend).__name__} has no noise_std, and its parameters, {kind}, have no noise law")
    return noise_std(parameters, weight)


class ConcreteBackend:
    """`Backend` on concrete-ml-extensions, on the CPU.

    It works row by row, and handles interrupts and progress between rows; within a row the library blocks all
    other Python threads.

    Args:
        parameters: "exact", "fast", "toy" (insecure, for tests), or an `EncryptionParameters`.
        threads: the number of threads of the library, or None for all cores. The library starts them once per
            process; after that, only the same number or None is accepted.
    Raises:
        ModuleNotFoundError: if the library is not installed, with the command that installs it.
        ValueError: for an unknown name, or threads < 1.
        EncryptionError: in a process forked after the library was used, where it would hang without its threads;
            and for another number of threads than the library was started with.
    """

    def __init__(self, parameters: str | EncryptionParameters = "exact", threads: int | None = None) -> None:
        if isinstance(parameters, str):
            if parameters not in PARAMETER_SETS:
                raise ValueError(f"parameters = {parameters!r}: expected one of {', '.join(PARAMETER_SETS)}")
            parameters = PARAMETER_SETS[parameters]
        if threads is not None and threads < 1:
            raise ValueError(f"threads = {threads}: expected at least 1")
        self.parameters: EncryptionParameters = parameters
        self.threads = threads
        check_use(threads)

    def keygen(self) -> Keys:
        """See `Backend`. About 5 s and 134 MB with "fast", 12 s and 336 MB with "exact", per core."""
        library = use(self.threads)
        if not self.parameters.secure:
            warnings.warn(f"the parameter set {self.parameters.name} is not secure: use it only in tests", stacklevel=2)
        with panics_as_errors("keygen"):
            secret, evaluation = library.cpu_create_private_key(_crypto(library, self.parameters))
            secret_contents, evaluation_contents = secret.serialize(), evaluation.serialize()
        key_id = digest(evaluation_contents)[:16]
        return Keys(
            self._seal(SECRET, key_id, 0, 0, secret_contents), self._seal(EVALUATION, key_id, 0, 0, evaluation_contents)
        )

    def encrypt(self, q: Tensor, keys: Keys, *, progress: Progress | None = None) -> bytes:
        """See `Backend`."""
        check_matrix("q", q)
        limit = 1 << (self.parameters.bits - 1)
        if q.numel() and (int(q.min()) < 0 or int(q.max()) >= limit):
            raise ValueError(f"q is from {int(q.min())} to {int(q.max())}: expected 0 to {limit - 1}")
        library = use(self.threads)
        with panics_as_errors("encrypt"):
            key_id, secret = self._open_secret(library, keys)
            crypto = _crypto(library, self.parameters)
            values = q.cpu().numpy().view("uint64")

            def encrypt_row(i: int) -> bytes:
                row: bytes = library.encrypt_matrix(secret, crypto, values[i : i + 1]).serialize()
                return row

            rows = _by_row(encrypt_row, len(q), progress)
        return self._seal(INPUTS, key_id, len(q), q.shape[1], b"".join(rows))

    def evaluate(
        self, ciphertext: bytes, weight: Tensor, evaluation: bytes, *, progress: Progress | None = None
    ) -> bytes:
        """See `Backend`. The two last used evaluation keys stay in memory, deserialised."""
        check_matrix("weight", weight)
        if len(weight) == 0:
            raise ValueError(f"weight is {list(weight.shape)}: expected at least one row")
        inputs = Envelope.open(ciphertext, INPUTS, self.parameters)
        if inputs.columns != weight.shape[1]:
            raise ValueError(
                f"weight is {list(weight.shape)} but the ciphertext has {inputs.columns} features: "
                f"its second dimension must be {inputs.columns}"
            )
        given = self._rows(inputs, layout.inputs_row)
        library = use(self.threads)
        with panics_as_errors("evaluate"):
            check_bytes(EVALUATION, evaluation)  # the cache needs a hashable key
            key_id, key = _open_evaluation(evaluation, self.parameters)
            check_key(INPUTS, inputs.key_id, "the evaluation key", key_id)
            operand = weight.cpu().numpy().view("uint64").T

            def evaluate_row(i: int) -> bytes:
                row = library.EncryptedMatrix.deserialize(given[i])
                product: bytes = library.cpu_matrix_multiplication(row, operand, key).serialize()
                return product

            rows = _by_row(evaluate_row, len(given), progress)
        return self._seal(RESULT, key_id, inputs.rows, len(weight), b"".join(rows))

    def result_bytes(self, ciphertext: bytes, columns: int) -> int:
        """See `Backend`."""
        rows, _ = Envelope.shape(ciphertext, INPUTS)
        return Envelope.HEADER + rows * layout.length(layout.result_row(self.parameters, columns))

    def check_evaluation(self, evaluation: bytes) -> None:
        """Refuse bytes that are no evaluation key under these parameters; a server asks before it keeps them."""
        _evaluation_contents(evaluation, self.parameters)

    def decrypt(
        self, result: bytes, rows: int, columns: int, keys: Keys, *, progress: Progress | None = None
    ) -> Tensor:
        """See `Backend`."""
        sealed = Envelope.open(result, RESULT, self.parameters)
        if (sealed.rows, sealed.columns) != (rows, columns):
            raise EncryptionError(f"{RESULT} is [{sealed.rows}, {sealed.columns}]: expected [{rows}, {columns}]")
        given = self._rows(sealed, layout.result_row)
        library = use(self.threads)
        size = self.parameters.polynomial_size
        with panics_as_errors("decrypt"):
            key_id, secret = self._open_secret(library, keys)
            check_key(RESULT, sealed.key_id, "the secret key", key_id)
            crypto = _crypto(library, self.parameters)

            def decrypt_row(i: int) -> Tensor:
                row = library.CompressedResultEncryptedMatrix.deserialize(given[i])
                # The library needs the number of valid values in the last ciphertext.
                values = library.decrypt_matrix(row, secret, crypto, columns % size or size)
                return torch.from_numpy(values.view("int64"))

            decrypted = _by_row(decrypt_row, rows, progress)
        return wrap(torch.cat([torch.empty(0, columns, dtype=torch.int64), *decrypted]), self.parameters.bits)

    def _seal(self, kind: str, key_id: bytes, rows: int, columns: int, contents: bytes) -> bytes:
        return Envelope(kind, self.parameters.fingerprint(), key_id, rows, columns, contents).seal()

    def _open_secret(self, library: Any, keys: Keys) -> tuple[bytes, Any]:
        sealed = Envelope.open(keys.secret, SECRET, self.parameters)
        if not layout.follows(layout.secret_key(self.parameters), sealed.contents):
            raise EncryptionError(f"{SECRET} came with invalid contents")
        return sealed.key_id, library.PrivateKey.deserialize(sealed.contents)

    def _rows(self, sealed: Envelope, layout_of: Callable[[EncryptionParameters, int], layout.Layout]) -> list[bytes]:
        """The contents split into rows; each row must follow the layout."""
        size = len(sealed.contents)
        # A layout takes memory in proportion to the columns, so refuse more columns than the contents can hold.
        expected = layout_of(self.parameters, sealed.columns) if 0 < sealed.columns <= 8 * size else ()
        length = layout.length(expected)
        if size != sealed.rows * length or (sealed.rows and not expected):
            raise EncryptionError(
                f"{sealed.kind} came as {size} bytes: expected {sealed.rows} rows of {sealed.columns} columns"
            )
        rows = [sealed.contents[at : at + length] for at in range(0, size, length)] if size else []
        for i, row in enumerate(rows):
            if not layout.follows(expected, row):
                raise EncryptionError(f"{sealed.kind} came with invalid contents in row {i}")
        return rows


def _crypto(library: Any, p: EncryptionParameters) -> Any:
    numbers = {
        "bits_reserved_for_computation": p.bits,
        "ciphertext_modulus_bit_count": 64,
        "encryption_glwe_dimension": 1,
        "polynomial_size": p.polynomial_size,
        "input_storage_ciphertext_modulus": p.bits_in,
        "glwe_encryption_noise_distribution_stdev": STANDARD_DEVIATION,
        "packing_ks_glwe_dimension": 1,
        "packing_ks_polynomial_size": p.polynomial_size,
        "packing_ks_level": p.levels,
        "packing_ks_base_log": p.base_log,
        "pks_noise_distrubution_stdev": STANDARD_DEVIATION,
        "output_storage_ciphertext_modulus": p.bits_out,
    }
    return library.MatmulCryptoParameters.deserialize(json.dumps(numbers))


def _evaluation_contents(evaluation: bytes, parameters: EncryptionParameters) -> Envelope:
    sealed = Envelope.open(evaluation, EVALUATION, parameters)
    if not layout.follows(layout.evaluation_key(parameters), sealed.contents):
        raise EncryptionError(f"{EVALUATION} came with invalid contents")
    return sealed


@lru_cache(maxsize=2)
def _open_evaluation(evaluation: bytes, parameters: EncryptionParameters) -> tuple[bytes, Any]:
    sealed = _evaluation_contents(evaluation, parameters)
    return sealed.key_id, import_library().CpuCompressionKey.deserialize(sealed.contents)


def _by_row(work: Callable[[int], _T], rows: int, progress: Progress | None) -> list[_T]:
    results = []
    for i in range(rows):
        results.append(work(i))
        if progress is not None:
            progress(i + 1, rows)
    return results


def check_matrix(name: str, t: Tensor) -> None:
    if t.ndim != 2 or t.shape[1] == 0 or t.dtype != torch.int64:
        expected = "int64, with two dimensions, the second not empty"
        raise ValueError(f"{name} is {str(t.dtype).removeprefix('torch.')} {list(t.shape)}: expected {expected}")


def check_key(kind: str, key_id: bytes, name: str, other: bytes) -> None:
    if key_id != other:
        raise EncryptionError(
            f"{kind} came under the keys {key_id.hex()[:8]}, but {name} is of {other.hex()[:8]}: use the same pair"
        )
