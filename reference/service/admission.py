"""Who may use a server, and how much of it: bearer tokens, and the quotas of each client."""

import asyncio
import hashlib
import hmac
import ipaddress
import secrets
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager

from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection

from .protocol import Limits

LEAST_TOKEN = 16  # characters; a shorter token could be guessed


class Tokens:
    """The bearer tokens that a server accepts.

    Args:
        tokens: each of at least 16 printable ASCII characters without spaces; none admits everyone.
    Raises:
        ValueError: for another token, without showing it.
    """

    def __init__(self, tokens: Collection[str]) -> None:
        for token in tokens:
            if len(token) < LEAST_TOKEN or not all(33 <= ord(letter) <= 126 for letter in token):
                raise ValueError(
                    f"a token has {len(token)} characters: expected at least {LEAST_TOKEN}, printable ASCII without "
                    f"spaces"
                )
        self._salt = secrets.token_bytes(32)
        self._digests = [self._digest(token.encode()) for token in tokens]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def check(self, request: HTTPConnection) -> None:
        """Refuse a request without one of the tokens; the time does not depend on how much of a token is right.

        Raises:
            HTTPException: 401.
        """
        if not self._digests:
            return
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        came = self._digest(token.strip().encode())
        known = [hmac.compare_digest(came, digest) for digest in self._digests]  # all of them, whichever is right
        if kind.lower() != "bearer" or not any(known):
            how = "came without a token" if not token else "came with an unknown token"
            raise HTTPException(
                401, f"the request {how}: expected Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"}
            )

    def _digest(self, token: bytes) -> bytes:
        return hmac.digest(self._salt, token, hashlib.sha256)


class Quotas:
    """How much of a server one client uses."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.requests: Counter[str] = Counter()
        self._uploads: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._waiting: Counter[str] = Counter()

    @contextmanager
    def request(self, client: str) -> Iterator[None]:
        """A request of a client, from its head to its answer.

        Raises:
            HTTPException: 503, if the client has as many requests as it may have.
        """
        if self.requests[client] >= self.limits.client_requests:
            raise busy(f"{self.requests[client]} requests of {client} are here")
        self.requests[client] += 1
        try:
            yield
        finally:
            self.requests[client] -= 1
            self.requests += Counter()  # drops clients with a count of 0

    @asynccontextmanager
    async def upload(self, client: str) -> AsyncIterator[None]:
        """The only upload of a client at a time; further ones wait."""
        self._waiting[client] += 1
        try:
            async with self._uploads[client]:
                yield
        finally:
            self._waiting[client] -= 1
            if not self._waiting[client]:
                del self._waiting[client], self._uploads[client]


def client_of(address: str | None) -> str:
    """The client that an address belongs to: an IPv4 address, or the network /64 of an IPv6 address."""
    try:
        known = ipaddress.ip_address((address or "").partition("%")[0])
    except ValueError:
        return address or "an unknown client"
    if isinstance(known, ipaddress.IPv6Address):
        if known.ipv4_mapped is not None:
            return str(known.ipv4_mapped)
        return str(ipaddress.ip_network((known, 64), strict=False))
    return str(known)


def busy(why: str) -> HTTPException:
    """The answer to a request beyond a limit; the client may try again."""
    return HTTPException(503, f"{why}: the server takes no more at once", headers={"Retry-After": "5"})
