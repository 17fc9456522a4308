"""The format of ciphertexts and keys in concrete-ml-extensions 0.2, to check bytes before the library reads them.

The library trusts the lengths and sizes in its input; wrong ones crash it or make it allocate all memory. These
values follow from the parameters and the matrix, so this module checks them. Only coefficients and seeds remain
unchecked, and they are harmless.
"""

import struct
from collections.abc import Iterator, Sequence

from .noise import EncryptionParameters

Layout = Sequence[bytes | int]
"""The parts of a message, in order: fixed bytes, or a number of arbitrary bytes."""


def _words(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}Q", *values)


_MODULUS = _words(0, 0, 64)  # 2^64, written as 0 (16 bytes), and the bits of a word


def inputs_row(parameters: EncryptionParameters, features: int) -> Layout:
    """An encrypted row of inputs: one ciphertext per polynomial_size features."""
    size, bits = parameters.polynomial_size, parameters.bits_in
    ciphertext = (*_packed(size, bits), _words(size, bits, 1, size), 16, _MODULUS)  # 16: the seed of the mask
    count = -(-features // size)
    return (_words(1, count), *(ciphertext * count), _words(features, 1, features))


def result_row(parameters: EncryptionParameters, columns: int) -> Layout:
    """An encrypted row of results: one ciphertext per polynomial_size columns, the last one shortened."""
    size, bits = parameters.polynomial_size, parameters.bits_out
    parts: list[bytes | int] = [_words(1, -(-columns // size))]
    for done in range(0, columns, size):
        bodies = min(size, columns - done)
        parts += [*_packed(size + bodies, bits), _words(size + bodies, 1, size, bodies), _MODULUS]
    return parts


def evaluation_key(parameters: EncryptionParameters) -> Layout:
    """The packing key, and the format of packed results."""
    p, size = parameters, parameters.polynomial_size
    words = 2 * p.levels * size * size
    return (_words(words), 8 * words, _words(p.base_log, p.levels, 2, size), _MODULUS, _words(size, p.bits_out))


def secret_key(parameters: EncryptionParameters) -> Layout:
    """The key of inputs, and the key of results."""
    size = parameters.polynomial_size
    return (_words(size), 8 * size, _words(size)) * 2


def length(layout: Layout) -> int:
    """The number of bytes in a message of this layout."""
    return sum(part if isinstance(part, int) else len(part) for part in layout)


def follows(layout: Layout, message: bytes) -> bool:
    """Whether a message has the length and all fixed bytes of this layout."""
    return len(message) == length(layout) and all(message.startswith(fixed, at) for at, fixed in _fixed(layout))


def _fixed(layout: Layout) -> Iterator[tuple[int, bytes]]:
    at = 0
    for part in layout:
        if isinstance(part, int):
            at += part
        else:
            yield at, part
            at += len(part)


def _packed(count: int, bits: int) -> Layout:
    """`count` integers of `bits` bits, packed into 64-bit words."""
    words = -(-count * bits // 64)
    return (_words(words), 8 * words, _words(bits))
