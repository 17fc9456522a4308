"""The server's stores in memory: of evaluation keys, and of ciphertexts that several modules multiply."""

from collections import Counter, OrderedDict
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from starlette.exceptions import HTTPException

from .protocol import KEY_UNKNOWN, Limits


class KeyStore:
    """Evaluation keys by the hash of their bytes; the least recently used key comes first."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.held: OrderedDict[str, bytes] = OrderedDict()
        self.owners: dict[str, str] = {}
        self.users: Counter[str] = Counter()

    def __contains__(self, name: str) -> bool:
        return name in self.held

    def add(self, name: str, key: bytes, client: str) -> None:
        """Store a key of a client.

        A client with client_keys keys loses its least recently used one. If there is no room, idle keys of the client
        with the most keys are dropped: a client that uploads many keys drops its own.

        Raises:
            HTTPException: 507, if the keys in use leave no room.
        """
        if name in self.held:
            return
        going: list[str] = []
        own = [other for other in self._idle() if self.owners[other] == client]
        beyond = sum(owner == client for owner in self.owners.values()) + 1 - self.limits.client_keys
        if beyond > len(own):
            raise HTTPException(507, f"all {self.limits.client_keys} evaluation keys of {client} are in use: try later")
        going += own[: max(0, beyond)]
        while not self._fits(len(key), going):
            counts = Counter(owner for other, owner in self.owners.items() if other not in going) + Counter({client: 1})
            idle = [other for other in self._idle() if other not in going]
            if not idle:
                raise HTTPException(
                    507, "no room for another evaluation key while the others are in use: try again later"
                )
            going.append(max(idle, key=lambda other: counts[self.owners[other]]))  # of equal counts the first
        for other in going:
            del self.held[other], self.owners[other]
        self.held[name], self.owners[name] = key, client

    def _idle(self) -> list[str]:
        return [name for name in self.held if not self.users[name]]

    def _fits(self, size: int, going: Collection[str]) -> bool:
        left = [len(key) for name, key in self.held.items() if name not in going]
        return len(left) < self.limits.keys and sum(left) + size <= self.limits.keys_bytes

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
