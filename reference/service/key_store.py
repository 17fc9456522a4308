"""The evaluation keys that a server keeps in memory."""

from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.exceptions import HTTPException

from .protocol import KEY_UNKNOWN, Limits


class KeyStore:
    """Evaluation keys by the hash of their bytes, least recently used first."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.held: OrderedDict[str, bytes] = OrderedDict()
        self.users: Counter[str] = Counter()

    def __contains__(self, name: str) -> bool:
        return name in self.held

    def add(self, name: str, key: bytes) -> None:
        """Keep a key, and let go of those unused for longest where there is no room."""
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
            raise HTTPException(507, "no room for another evaluation key while those here are in use: try again later")
        for other in going:
            del self.held[other]
        self.held[name] = key

    @contextmanager
    def in_use(self, name: str) -> Iterator[bytes]:
        """The key, which stays meanwhile."""
        if name not in self.held:
            raise HTTPException(KEY_UNKNOWN, "this evaluation key is not here: upload it first")
        self.held.move_to_end(name)
        self.users[name] += 1
        try:
            yield self.held[name]
        finally:
            self.users[name] -= 1
            self.users += Counter()  # drops what nobody uses
