"""A pair of keys that is never shown, and a file of it that only its owner can read."""

import hashlib
import os
import stat
import struct
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from .envelope import EncryptionError

_MAGIC = b"LORAKEY\x01"
_HEADER = struct.Struct("<8sQQ32s")  # magic, length of the secret key, length of the evaluation key, SHA-256


class Keys:
    """A secret key, which encrypts and decrypts, and the evaluation key, with which a server computes.

    No representation shows the secret key. The pair cannot be pickled, so that it does not end up in unprotected
    files. A copy is the same object, because the object is immutable.

    Args:
        secret: the key that never leaves the client.
        evaluation: the key for the server.
    """

    __slots__ = ("_evaluation", "_secret")

    def __init__(self, secret: bytes, evaluation: bytes) -> None:
        self._secret = secret
        self._evaluation = evaluation

    @property
    def secret(self) -> bytes:
        """The secret key."""
        return self._secret

    @property
    def evaluation(self) -> bytes:
        """The evaluation key, which is public."""
        return self._evaluation

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write both keys to one file of mode 0600, first under a temporary name in the same folder.

        Raises:
            OSError: if the file cannot be written; the temporary file is removed and an earlier file unchanged.
        """
        path = Path(path)
        lengths = len(self._secret), len(self._evaluation)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mkstemp gives 0600
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(_HEADER.pack(_MAGIC, *lengths, _checksum(self._secret, self._evaluation)))
                file.write(self._secret)
                file.write(self._evaluation)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
            raise

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Keys":
        """Read a file of `save`.

        Raises:
            EncryptionError: if other users may read or write the file (on POSIX), or the file is damaged.
            OSError: if the file cannot be read.
        """
        with open(path, "rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if os.name == "posix" and mode & 0o077:
                raise EncryptionError(
                    f"{path} has mode {mode:04o}: others can reach the secret key in it; change it to 0600 (chmod 600)"
                )
            content = file.read()
        return cls._parse(content, path)

    @classmethod
    def _parse(cls, content: bytes, path: object) -> "Keys":
        if len(content) < _HEADER.size or not content.startswith(_MAGIC):
            raise EncryptionError(f"{path} is not a file of keys")
        _, secret_length, evaluation_length, checksum = _HEADER.unpack_from(content)
        expected = _HEADER.size + secret_length + evaluation_length
        if len(content) != expected:
            raise EncryptionError(f"{path} has {len(content)} bytes: expected {expected}")
        secret = content[_HEADER.size : _HEADER.size + secret_length]
        evaluation = content[_HEADER.size + secret_length :]
        if checksum != _checksum(secret, evaluation):
            raise EncryptionError(f"{path} is damaged: its checksum is wrong")
        return cls(secret, evaluation)

    def __repr__(self) -> str:
        return f"Keys(secret=<hidden>, evaluation=<{len(self._evaluation)} bytes>)"

    def __copy__(self) -> "Keys":
        return self

    def __deepcopy__(self, memo: object) -> "Keys":
        return self

    def __getstate__(self) -> NoReturn:
        raise TypeError("keys are not pickled: use save and load")

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        self.__getstate__()


def _checksum(secret: bytes, evaluation: bytes) -> bytes:
    return hashlib.sha256(hashlib.sha256(secret).digest() + hashlib.sha256(evaluation).digest()).digest()
