"""What every encrypted message and key travels in: a header that says what it is and whose, and a checksum."""

import hashlib
import struct
from dataclasses import dataclass

from .noise import PARAMETER_SETS, EncryptionParameters

INPUTS, RESULT, EVALUATION, SECRET = "encrypted inputs", "an encrypted result", "an evaluation key", "a secret key"
"""The kinds of contents."""

_KINDS = {INPUTS: b"I", RESULT: b"R", EVALUATION: b"E", SECRET: b"S"}
_MAGIC = b"LORAFHE\x01"
_FIELDS = struct.Struct("<8sc16s16sQQ")  # magic, kind, parameters, key, rows, columns
_HEADER = _FIELDS.size + hashlib.sha256().digest_size


class EncryptionError(RuntimeError):
    """A key, ciphertext or result that cannot be used, and why. It never shows any of a key."""


@dataclass(frozen=True, repr=False)
class Envelope:
    """Contents with a header: ``magic | kind | parameters | key id | rows | columns | SHA-256 | contents``.

    The checksum finds truncation and accidents, not forgery. Who forges it can still only give a wrong
    result: the layout of the contents is checked too.

    Args:
        kind: what it is.
        fingerprint: of the parameter set.
        key_id: 16 bytes that name the key pair; see `digest`.
        rows, columns: of the encrypted matrix; 0 for keys.
        contents: as the encryption library wrote them, a row after another.
    """

    kind: str
    fingerprint: bytes
    key_id: bytes
    rows: int
    columns: int
    contents: bytes

    def seal(self) -> bytes:
        """Header and contents."""
        fields = _FIELDS.pack(_MAGIC, _KINDS[self.kind], self.fingerprint, self.key_id, self.rows, self.columns)
        return b"".join((fields, _checksum(fields, digest(self.contents)), self.contents))

    @classmethod
    def open(cls, sealed: bytes, kind: str, parameters: EncryptionParameters) -> "Envelope":
        """The envelope of sealed bytes, if they are whole, of this kind and under these parameters.

        Raises:
            EncryptionError: if not, saying which.
        """
        check_bytes(kind, sealed)
        if len(sealed) < _HEADER:
            raise EncryptionError(f"{kind} came as {len(sealed)} bytes: expected at least the {_HEADER} of its header")
        if not sealed.startswith(_MAGIC):
            raise EncryptionError(f"{kind} came without the mark it begins with: these bytes are something else")
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
            raise EncryptionError(f"{kind} came under the name of another")
        return cls(kind, fingerprint, key_id, rows, columns, contents)


def check_bytes(kind: str, sealed: object) -> None:
    """Refuse what is not bytes, which is nothing that `seal` gave."""
    if not isinstance(sealed, bytes):
        raise EncryptionError(f"{kind} came as {type(sealed).__name__}: expected bytes")


def digest(contents: bytes) -> bytes:
    """SHA-256. The first 16 bytes of an evaluation key's name the key pair, and tell nothing of the secret."""
    return hashlib.sha256(contents).digest()


def _checksum(fields: bytes, contents_digest: bytes) -> bytes:
    return hashlib.sha256(fields + contents_digest).digest()


def _named(fingerprint: bytes) -> str:
    known = (p.name for p in PARAMETER_SETS.values() if p.fingerprint() == fingerprint)
    return f"the parameter set {next(known, 'of nobody here')}"
