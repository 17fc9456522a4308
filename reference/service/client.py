"""The client of a server that multiplies encrypted inputs by its weights."""

import base64
import difflib
import hashlib
import json
import socket
import threading
import time
import weakref
from collections import Counter
from collections.abc import Iterator
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from .protocol import (
    BYTES,
    CIPHERTEXT_HEADER,
    CIPHERTEXT_UNKNOWN,
    INLINE_KEY_BYTES,
    INSTALL,
    KEY_HEADER,
    KEY_UNKNOWN,
    PROTOCOL,
    PROTOCOL_HEADER,
)

TIMEOUT = 3600.0  # seconds for one evaluation
MOST_SAID = 2**24  # bytes of an answer that is not a result
MOST_RESULT = 2**30  # bytes of a result whose size is not known
_PIECE = 2**18  # bytes sent at once


class RemoteError(RuntimeError):
    """A failed request to a server: the message names the request, the server, the result and the expectation."""


class RemoteClient:
    """A server's linear products, for `RemoteModule`; several threads may share it.

    It sends ciphertexts, evaluation keys and the names of models and modules, and only to this address: it follows
    neither redirects nor proxies from the environment.

    Args:
        address: ``http://host:port`` or ``https://…``.
        timeout: total seconds for one evaluation or one upload of a key.
        connect_timeout: seconds to connect, and for the health request.
        transport: an httpx transport instead of the default one, to record the traffic or to set up TLS.
    Raises:
        ImportError: without httpx, with the command that installs it.
        ValueError: for an invalid address.
    """

    def __init__(
        self, address: str, timeout: float = TIMEOUT, *, connect_timeout: float = 10.0, transport: Any = None
    ) -> None:
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError(f"address {_without_password(address)!r}: expected http://host:port")
        check_seconds("timeout", timeout)
        check_seconds("connect_timeout", connect_timeout)
        self.address = _without_password(address).rstrip("/")
        self.timeout, self.connect_timeout = timeout, connect_timeout
        self._made_of = address, transport
        self._last_key: tuple[bytes, str] | None = None
        self._uploading, self._uploads = threading.Lock(), Counter[str]()
        httpx = _httpx()
        if transport is None:
            # Keep-alive packets detect a dead host minutes before the time-out of a long evaluation.
            alive = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
            for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 6)):
                if hasattr(socket, name):
                    alive.append((socket.IPPROTO_TCP, getattr(socket, name), value))
            transport = httpx.HTTPTransport(trust_env=False, socket_options=alive, limits=httpx.Limits())
        self._http = httpx.Client(base_url=address, transport=transport, trust_env=False)
        self._closing = weakref.finalize(self, self._http.close)  # models do not close their clients

    def health(self) -> dict[str, Any]:
        """The server's description of itself: ``status``, ``version``, ``models`` with their ``modules``.

        Raises:
            RemoteError: if no server answers.
        """
        what = f"health of {self.address}"
        status, _, body = self._ask("GET", "/health", what, min(self.timeout, self.connect_timeout))
        if status != 200:
            raise self._refused(what, status, body)
        try:
            found = json.loads(body)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise RemoteError(f"{what}: {len(body)} bytes came that are not a JSON object")
        return found

    def digests(self, model_name: str) -> dict[str, str]:
        """The digest of the integers of each module of a model at the server, see `answer_check.weight_digest`.

        Raises:
            RemoteError: if no server answers, or the server has no such model.
        """
        models = self.health().get("models")
        found = models.get(model_name) if isinstance(models, dict) else None
        if not isinstance(found, dict):
            others = [str(name)[:100] for name in models] if isinstance(models, dict) else []
            near = "".join(f": did you mean {name!r}?" for name in difflib.get_close_matches(model_name, others, n=1))
            raise RemoteError(
                f"{self.address} has no model {model_name!r}{near or ': expected one of ' + ', '.join(others[:20])}"
            )
        digests = found.get("digests")
        return {str(name): str(digest) for name, digest in digests.items()} if isinstance(digests, dict) else {}

    def evaluate(
        self,
        model_name: str,
        module_name: str,
        ciphertext: bytes,
        evaluation: bytes,
        *,
        size: int | None = None,
        name: str = "",
        sent: bool = False,
    ) -> bytes:
        """The encrypted result of a server's module; the evaluation key is uploaded if the server lacks it.

        Args:
            ciphertext: the encrypted inputs, from `Backend.encrypt`.   evaluation: the key of the same pair.
            size: the bytes of the result; the client reads no more. None: up to 2^30.
            name: a random name, 64 hexadecimal digits, under which the server keeps the ciphertext for a while.
            sent: whether the server has the ciphertext under this name; if it lost it, it is sent again.
        Raises:
            RemoteError: if the server refuses, cannot be reached, or takes longer than the time-out; if the result has
                another size.
        """
        what = f"evaluate {model_name}/{module_name} at {self.address}"
        query, key, inline = {"model": model_name, "module": module_name}, self._name(evaluation), b""
        if 0 < len(evaluation) <= INLINE_KEY_BYTES:
            inline = b"=" + base64.b64encode(evaluation)
        headers = {KEY_HEADER: inline or key} | ({CIPHERTEXT_HEADER: name} if name else {})
        most = MOST_RESULT if size is None else size
        sent, uploaded = sent and bool(name), False
        while True:
            uploads, content = self._uploads[key], b"" if sent else ciphertext
            status, kind, body = self._ask(
                "POST", "/evaluate", what, self.timeout, content, most, params=query, headers=headers
            )
            if status == CIPHERTEXT_UNKNOWN and sent:
                sent = False
            elif status == KEY_UNKNOWN and not uploaded:
                uploaded = True
                with self._uploading:  # only one of several threads uploads
                    if self._uploads[key] == uploads:
                        self._upload(evaluation, key)
                        self._uploads[key] += 1
            else:
                break
        if status != 200:
            raise self._refused(what, status, body)
        if kind != BYTES:
            raise RemoteError(f"{what}: {kind or 'something unnamed'} came, expected {BYTES}")
        if size is not None and len(body) != size:
            raise RemoteError(f"{what}: {len(body)} bytes came: expected a result of {size}")
        return body

    def close(self) -> None:
        """Close the connections."""
        self._closing()

    def __reduce__(self) -> Any:
        if self._made_of[1] is not None:
            raise TypeError("a RemoteClient with a transport of its own cannot be copied or pickled")
        return _again, (type(self), self._made_of[0], self.timeout, self.connect_timeout)

    def __repr__(self) -> str:
        return f"RemoteClient({self.address!r})"

    def _name(self, evaluation: bytes) -> str:
        last = self._last_key
        if last is None or last[0] is not evaluation:
            last = self._last_key = evaluation, hashlib.sha256(evaluation).hexdigest()
        return last[1]

    def _upload(self, evaluation: bytes, key: str) -> None:
        what = f"upload of the evaluation key to {self.address}"
        status, _, body = self._ask("PUT", f"/keys/{key}", what, self.timeout, evaluation)
        if status != 204:
            raise self._refused(what, status, body)

    def _ask(
        self, method: str, path: str, what: str, timeout: float, content: bytes = b"", most: int = 0, **more: Any
    ) -> tuple[int, str, bytes]:
        """Status, content type and body of a loraspec server's answer; an answer has at most `most` bytes."""
        httpx = _httpx()
        deadline = time.monotonic() + timeout
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
        seconds = httpx.Timeout(timeout, connect=min(timeout, self.connect_timeout))
        try:
            with self._http.stream(method, path, headers=headers, timeout=seconds, **more) as answer:
                if answer.headers.get(PROTOCOL_HEADER) != PROTOCOL:
                    raise RemoteError(
                        f"{what}: status {answer.status_code} came without the header {PROTOCOL_HEADER}: {PROTOCOL}: "
                        f"expected a loraspec server of this version"
                    )
                most = most if answer.status_code == 200 and most else MOST_SAID
                body = b"".join(_up_to(most, in_time(answer.iter_raw()), what))
                return answer.status_code, answer.headers.get("Content-Type", ""), body
        except httpx.ConnectTimeout:
            raise RemoteError(
                f"{what}: not connected within {min(timeout, self.connect_timeout):g} s: expected a running `loraspec "
                f"serve`"
            ) from None
        except httpx.TimeoutException:
            raise late from None
        except httpx.ConnectError as error:
            raise RemoteError(f"{what}: cannot connect ({error}): expected a running `loraspec serve`") from None
        except httpx.RemoteProtocolError as error:
            raise RemoteError(f"{what}: no whole HTTP answer came: {str(error)[:120]}") from None
        except httpx.HTTPError as error:
            raise RemoteError(f"{what}: the connection broke ({type(error).__name__}): {str(error)[:120]}") from None

    def _refused(self, what: str, status: int, body: bytes) -> RemoteError:
        try:
            said = json.loads(body[:65536])["error"]
        except (ValueError, KeyError, TypeError):
            said = f"{len(body)} bytes that are not a JSON error"
        return RemoteError(f"{what}: refused with {status}: {str(said)[:500]}")


def check_seconds(name: str, seconds: float) -> None:
    """Refuse an invalid time-out.

    Raises:
        ValueError: naming the parameter.
    """
    if not 0 < seconds < float("inf"):
        raise ValueError(f"{name} = {seconds}: expected a positive number of seconds")


def _httpx() -> ModuleType:
    try:
        import httpx
    except ModuleNotFoundError as error:
        raise ImportError(f"a client of a server needs httpx: {INSTALL}") from error
    return httpx


def _up_to(most: int, pieces: Iterator[bytes], what: str) -> Iterator[bytes]:
    """The pieces of an answer; the rest of a longer one is not read."""
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > most:
            raise RemoteError(f"{what}: more than {most} bytes came: expected at most that; the rest was not read")
        yield piece


def _again(kind: type[RemoteClient], address: str, timeout: float, connect_timeout: float) -> RemoteClient:
    return kind(address, timeout, connect_timeout=connect_timeout)


def _without_password(address: str) -> str:
    start, separator, rest = address.partition("://")
    before_path = rest.partition("/")[0]
    return start + separator + rest[before_path.rfind("@") + 1 :]
