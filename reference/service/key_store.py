"""The server's stores in memory: of evaluation keys, and of ciphertexts that several modules multiply."""

from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.exceptions import HTTPException

from .protocol import KEY_UNKNOWN, Limits


class KeyStore:
    """Evaluation keys by the hash of their bytes; the least recently used key comes first."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.held: OrderedDict[str, bytes] = OrderedDict()
        self.users: Counter[str] = Counter()

    def __contains__(self, name: str) -> bool:
        return name in self.held

    def add(self, name: str, key: bytes) -> None:
        """Store a key; if there is no room, drop the least recently used keys."""
        if name in self.held:
            return
        room, going = self.limits.keys_bytes - sum(map(len, self.held.values())), []
        number = self.limits.keys - len(self.held)
        for other, held in self.held.items():
            if room >= len(key) and number >= 1:
                break
            if not self.users[other]:
                going.append(other)
                room, number = room + len(held), number + 1
        if room < len(key) or number < 1:
            raise HTTPException(507, "no room for another evaluation key while the others are in use: try again later")
        for other in going:
            del self.held[other]
        self.held[name] = key

    @contextmanager
    def in_use(self, name: str) -> Iterator[bytes]:
        """The key, which is not dropped within this context."""
        if name not in self.held:
            raise HTTPException(KEY_UNKNOWN, "this evaluation key is not here: upload it first")
        self.held.move_to_end(name)
        self.users[name] += 1
        try:
            yield self.held[name]
        finally:
            self.users[name] -= 1
            self.users += Counter()  # drops names with a count of 0


class CiphertextStore:
    """Ciphertexts by the random names that clients give them; the oldest is dropped first.

    Args:
        most: their total size.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.held: OrderedDict[str, bytes] = OrderedDict()

    def add(self, name: str, ciphertext: bytes) -> None:
        """Keep a ciphertext, unless it is larger than the whole store."""
        self.held.pop(name, None)
        if len(ciphertext) > self.most:
            return
        self.held[name] = ciphertext
        while sum(map(len, self.held.values())) > self.most:
            self.held.popitem(last=False)

    def get(self, name: str) -> bytes | None:
        """The ciphertext of this name, if it is still here."""
        return self.held.get(name)
