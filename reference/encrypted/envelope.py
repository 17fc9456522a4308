"""The envelope of every encrypted message and key: a header with kind and owner, and a checksum."""

import hashlib
import struct
from dataclasses import dataclass
from typing import Protocol

from .noise import PARAMETER_SETS

INPUTS, RESULT, EVALUATION, SECRET = "encrypted inputs", "an encrypted result", "an evaluation key", "a secret key"
"""The kinds of contents, as error messages call them."""

_KINDS = {INPUTS: b"I", RESULT: b"R", EVALUATION: b"E", SECRET: b"S"}
_MAGIC = b"LORAFHE\x01"
_FIELDS = struct.Struct("<8sc16s16sQQ")  # magic, kind, parameters, key, rows, columns
_HEADER = _FIELDS.size + hashlib.sha256().digest_size


class Parameters(Protocol):
    """The parameters of a backend: results are modulo 2^bits, and the fingerprint tells them from others."""

    @property
    def name(self) -> str:
        """The name in messages."""
        ...

    @property
    def bits(self) -> int:
        """The bits of a result."""
        ...

    @property
    def secure(self) -> bool:
        """Whether the encryption is secure."""
        ...

    def fingerprint(self) -> bytes:
        """16 bytes that depend on every parameter except the name."""
        ...


class EncryptionError(RuntimeError):
    """The reason why a key, ciphertext or result cannot be used; the message never contains a part of a key."""


@dataclass(frozen=True, repr=False)
class Envelope:
    """Contents with a header: ``magic | kind | parameters | key id | rows | columns | SHA-256 | contents``.

    The checksum detects truncation and accidental changes, not forgery. A forged message can only give a wrong
    result, because the layout of the contents is checked too.

    Args:
        kind: the kind of the contents.
        fingerprint: the fingerprint of the parameter set.
        key_id: 16 bytes that name the key pair; see `digest`.
        rows, columns: the shape of the encrypted matrix; 0 for keys.
        contents: the bytes of the encryption library, row after row.
    """

    kind: str
    fingerprint: bytes
    key_id: bytes
    rows: int
    columns: int
    contents: bytes

    HEADER = _HEADER

    def seal(self) -> bytes:
        """Header and contents."""
        fields = _FIELDS.pack(_MAGIC, _KINDS[self.kind], self.fingerprint, self.key_id, self.rows, self.columns)
        return b"".join((fields, _checksum(fields, digest(self.contents)), self.contents))

    @classmethod
    def open(cls, sealed: bytes, kind: str, parameters: Parameters) -> "Envelope":
        """Parse sealed bytes; they must be whole, of this kind and under these parameters.

        Raises:
            EncryptionError: naming the condition that fails.
        """
        check_bytes(kind, sealed)
        if len(sealed) < _HEADER:
            raise EncryptionError(f"{kind} came as {len(sealed)} bytes: expected at least the {_HEADER} of its header")
        if not sealed.startswith(_MAGIC):
            raise EncryptionError(f"{kind} came without the mark at the beginning: these bytes are something else")
        fields, checksum, contents = sealed[: _FIELDS.size], sealed[_FIELDS.size : _HEADER], sealed[_HEADER:]
        contents_digest = digest(contents)
        if checksum != _checksum(fields, contents_digest):
            raise EncryptionError(f"{kind} came with a wrong checksum: it was cut off or changed on its way")
        _, letter, fingerprint, key_id, rows, columns = _FIELDS.unpack(fields)
        found = next((name for name, of in _KINDS.items() if of == letter), "something unknown")
        if found != kind:
            raise EncryptionError(f"{found} came: expected {kind}")
        if fingerprint != parameters.fingerprint():
            raise EncryptionError(
                f"{kind} came under {_named(fingerprint)}: expected the parameter set {parameters.name}"
            )
        if kind == EVALUATION and key_id != contents_digest[:16]:
            raise EncryptionError(f"{kind} came under the name of another key")
        return cls(kind, fingerprint, key_id, rows, columns, contents)

    @staticmethod
    def shape(sealed: bytes, kind: str) -> tuple[int, int]:
        """Rows and columns of a message of one's own, whose contents are not read."""
        check_bytes(kind, sealed)
        _, _, _, _, rows, columns = _FIELDS.unpack_from(sealed)
        return rows, columns


def check_bytes(kind: str, sealed: object) -> None:
    """Refuse a message that is not bytes."""
    if not isinstance(sealed, bytes):
        raise EncryptionError(f"{kind} came as {type(sealed).__name__}: expected bytes")


def digest(contents: bytes) -> bytes:
    """SHA-256; its first 16 bytes, for an evaluation key, name the key pair without revealing the secret key."""
    return hashlib.sha256(contents).digest()


def _checksum(fields: bytes, contents_digest: bytes) -> bytes:
    return hashlib.sha256(fields + contents_digest).digest()


def _named(fingerprint: bytes) -> str:
    known = (f"the parameter set {p.name}" for p in PARAMETER_SETS.values() if p.fingerprint() == fingerprint)
    return f"{next(known, 'an unknown parameter set')}"
