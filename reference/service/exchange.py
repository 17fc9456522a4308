"""One request of a client: sent with limits of time and size, and repeated where that may help."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from .protocol import BYTES, INSTALL, PROTOCOL, PROTOCOL_HEADER

FIRST_WAIT = 0.25  # seconds before the first repetition of a request
BUSY = 503
MOST_SAID = 2**24  # bytes of an answer that is not a result
_PIECE = 2**18  # bytes sent at once


class RemoteError(RuntimeError):
    """A failed request to a server: the message names the request, the server, the result and the expectation."""


class _BrokenError(RemoteError):
    """No answer came because of the connection: the request may be repeated."""


@dataclass(frozen=True)
class Answer:
    """A server's answer: its status, content type, body, and the seconds after which to ask again, as it says them."""

    status: int
    kind: str
    body: bytes
    retry_after: str = ""

    def seconds_to_wait(self, otherwise: float) -> float | None:
        """The seconds after which to repeat the request; None if it is answered."""
        if self.status != BUSY:
            return None
        try:
            return max(otherwise, float(self.retry_after))
        except ValueError:
            return otherwise

    def refusal(self, what: str) -> RemoteError:
        """The error that says what the server said."""
        try:
            said = json.loads(self.body[:65536])["error"]
        except (ValueError, KeyError, TypeError):
            said = f"{len(self.body)} bytes that are not a JSON error"
        return RemoteError(f"{what}: refused with {self.status}: {str(said)[:500]}")


@dataclass(frozen=True)
class Exchange:
    """Requests over one httpx client.

    Attributes:
        http: the httpx client.   connect_timeout: seconds to connect.   retries: see `client.RemoteClient`.
    """

    http: Any
    connect_timeout: float
    retries: int

    def ask_again(self, method: str, path: str, what: str, timeout: float, deadline: float, **more: Any) -> Answer:
        """`ask`, repeated until the deadline; a request gives the same result however often it is repeated.

        Args:
            timeout: the seconds that the whole request may take, for errors.   more: as in `ask`.
        """
        broken: RemoteError | None = None
        for attempt in range(self.retries + 1):
            wait = FIRST_WAIT * 2**attempt
            last = attempt == self.retries or time.monotonic() + wait >= deadline
            try:
                answer = self.ask(method, path, what, timeout, deadline, **more)
            except RemoteError as error:
                if last or not isinstance(error, _BrokenError):
                    times = f" (tried {attempt + 1} times)" if attempt else ""
                    raise RemoteError(f"{broken or error}{times}") from None
                broken = error
            else:
                asked = answer.seconds_to_wait(wait)
                if asked is None or last or time.monotonic() + asked >= deadline:
                    return answer
                wait = asked
            time.sleep(wait)
        raise AssertionError("unreachable")

    def ask(
        self,
        method: str,
        path: str,
        what: str,
        timeout: float,
        deadline: float,
        content: bytes = b"",
        most: int = 0,
        **more: Any,
    ) -> Answer:
        """A loraspec server's answer, of at most `most` bytes if it is a result.

        Raises:
            RemoteError: if none comes in time, or something else comes.
        """
        httpx = import_httpx()
        late = RemoteError(f"{what}: no answer within {timeout:g} s: expected one; a longer one needs a larger timeout")

        def in_time(pieces: Iterator[bytes]) -> Iterator[bytes]:
            for piece in pieces:
                if time.monotonic() > deadline:
                    raise late
                yield piece

        headers = {**more.pop("headers", {}), "Accept-Encoding": "identity"}
        if content:
            headers |= {"Content-Type": BYTES, "Content-Length": str(len(content))}
            more["content"] = in_time(content[at : at + _PIECE] for at in range(0, len(content), _PIECE))
        elif method != "GET":
            headers["Content-Length"] = "0"
        left = max(1e-3, deadline - time.monotonic())
        seconds = httpx.Timeout(left, connect=min(left, self.connect_timeout))
        try:
            with self.http.stream(method, path, headers=headers, timeout=seconds, **more) as answer:
                if answer.headers.get(PROTOCOL_HEADER) != PROTOCOL:
                    raise RemoteError(
                        f"{what}: status {answer.status_code} came without the header {PROTOCOL_HEADER}: {PROTOCOL}: "
                        f"expected a loraspec server of this version"
                    )
                most = most if answer.status_code == 200 and most else MOST_SAID
                body = b"".join(_up_to(most, in_time(answer.iter_raw()), what))
                named = (answer.headers.get(name, "") for name in ("Content-Type", "Retry-After"))
                kind, retry_after = named
                return Answer(answer.status_code, kind, body, retry_after)
        except httpx.HTTPError as error:
            raise self._explained(error, what, late) from None

    def _explained(self, error: Exception, what: str, late: RemoteError) -> RemoteError:
        """The error of httpx in the words of this package; a `_BrokenError` if a repetition may help."""
        httpx, said = import_httpx(), str(error)[:120]
        if isinstance(error, httpx.ConnectTimeout):
            return _BrokenError(
                f"{what}: not connected within {self.connect_timeout:g} s: expected a running `loraspec serve`"
            )
        if isinstance(error, httpx.TimeoutException):
            return late
        if isinstance(error, httpx.ConnectError):
            if "SSL" in said or "CERTIFICATE" in said:
                return RemoteError(f"{what}: no TLS connection ({said}): expected a server that the authorities know")
            return _BrokenError(f"{what}: cannot connect ({said}): expected a running `loraspec serve`")
        if isinstance(error, httpx.RemoteProtocolError):
            return _BrokenError(f"{what}: no whole HTTP answer came: {said}")
        return _BrokenError(f"{what}: the connection broke ({type(error).__name__}): {said}")


def _up_to(most: int, pieces: Iterator[bytes], what: str) -> Iterator[bytes]:
    """The pieces of an answer; the rest of a longer one is not read."""
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > most:
            raise RemoteError(f"{what}: more than {most} bytes came: expected at most that; the rest was not read")
        yield piece


def import_httpx() -> ModuleType:
    """The module httpx.

    Raises:
        ImportError: with the command that installs it.
    """
    try:
        import httpx
    except ModuleNotFoundError as error:
        raise ImportError(f"a client of a server needs httpx: {INSTALL}") from error
    return httpx
