"""The client of a server that multiplies encrypted inputs by its weights."""

import base64
import difflib
import hashlib
import json
import threading
import time
import weakref
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .access import Access, check_address, without_password
from .exchange import Exchange, RemoteError, import_httpx
from .protocol import BYTES, CIPHERTEXT_HEADER, CIPHERTEXT_UNKNOWN, INLINE_KEY_BYTES, KEY_HEADER, KEY_UNKNOWN

__all__ = ["TIMEOUT", "RemoteClient", "RemoteError", "check_seconds"]

TIMEOUT = 3600.0  # seconds for one evaluation
MOST_RESULT = 2**30  # bytes of a result whose size is not known


class RemoteClient:
    """A server's linear products, for `RemoteModule`; several threads may share it.

    It sends ciphertexts, evaluation keys and the names of models and modules, and only to this address: it follows
    neither redirects nor proxies from the environment.

    Args:
        address: ``http://host:port`` or ``https://…``.
        timeout: total seconds for one evaluation or one upload of a key, repetitions included.
        connect_timeout: seconds to connect, and for the health request.
        retries: how often a request is repeated that did not reach a server, whose connection broke, or that the server
            was too busy for; after 0.25 s, 0.5 s and so on, or the seconds of the answer's Retry-After.
        token: the bearer token that the server asks for.
        ca: a file with the authorities that the server's certificate is checked by, PEM; None for those of certifi.
        certificate: this client's certificate and key, for a server that asks for one: a file, or a pair of files, PEM.
        proxy: ``http://host:port`` of a proxy; proxies of the environment are not used.
        headers: further headers of each request.
        transport: an httpx transport instead of the default one, for example to record the traffic; it sets up TLS and
            the proxy itself.
    Raises:
        ImportError: without httpx, with the command that installs it.
        ValueError: for an invalid address, token, header or proxy, a file that cannot be used, and a token for an
            address without TLS on another machine.
    """

    def __init__(
        self,
        address: str,
        timeout: float = TIMEOUT,
        *,
        connect_timeout: float = 10.0,
        retries: int = 3,
        token: str | None = None,
        ca: str | Path | None = None,
        certificate: str | Path | tuple[str | Path, str | Path] | None = None,
        proxy: str | None = None,
        headers: Mapping[str, str] | None = None,
        transport: Any = None,
    ) -> None:
        check_address(address)
        check_seconds("timeout", timeout)
        check_seconds("connect_timeout", connect_timeout)
        if not isinstance(retries, int) or isinstance(retries, bool) or retries < 0:
            raise ValueError(f"retries = {retries!r}: expected an int, at least 0")
        self.address = without_password(address).rstrip("/")
        self.timeout, self.connect_timeout, self.retries = timeout, connect_timeout, retries
        access = Access(token, ca, certificate, proxy, dict(headers or {}))
        access.check(address)
        self._made_of = address, access, transport
        self._last_key: tuple[bytes, str] | None = None
        self._uploading, self._uploads = threading.Lock(), Counter[str]()
        httpx = import_httpx()
        transport = transport or access.transport(httpx)
        self._http = httpx.Client(
            base_url=address, transport=transport, trust_env=False, headers=access.request_headers()
        )
        self._exchange = Exchange(self._http, connect_timeout, retries)
        self._closing = weakref.finalize(self, self._http.close)  # models do not close their clients

    def health(self) -> dict[str, Any]:
        """The server's description of itself: ``status``, ``version``, ``models`` with their ``modules``.

        Raises:
            RemoteError: if no server answers.
        """
        what = f"health of {self.address}"
        seconds = min(self.timeout, self.connect_timeout)
        answer = self._exchange.ask("GET", "/health", what, seconds, time.monotonic() + seconds)
        if answer.status != 200:
            raise answer.refusal(what)
        try:
            found = json.loads(answer.body)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise RemoteError(f"{what}: {len(answer.body)} bytes came that are not a JSON object")
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
        deadline, sent, uploaded = time.monotonic() + self.timeout, sent and bool(name), False
        while True:
            uploads, content = self._uploads[key], b"" if sent else ciphertext
            answer = self._exchange.ask_again(
                "POST",
                "/evaluate",
                what,
                self.timeout,
                deadline,
                content=content,
                most=most,
                params=query,
                headers=headers,
            )
            if answer.status == CIPHERTEXT_UNKNOWN and sent:
                sent = False
            elif answer.status == KEY_UNKNOWN and not uploaded:
                uploaded = True
                with self._uploading:  # only one of several threads uploads
                    if self._uploads[key] == uploads:
                        self._upload(evaluation, key, deadline)
                        self._uploads[key] += 1
            else:
                break
        if answer.status != 200:
            raise answer.refusal(what)
        if answer.kind != BYTES:
            raise RemoteError(f"{what}: {answer.kind or 'something unnamed'} came, expected {BYTES}")
        if size is not None and len(answer.body) != size:
            raise RemoteError(f"{what}: {len(answer.body)} bytes came: expected a result of {size}")
        return answer.body

    def close(self) -> None:
        """Close the connections."""
        self._closing()

    def __copy__(self) -> "RemoteClient":
        return self.__deepcopy__({})

    def __deepcopy__(self, _: dict[int, Any]) -> "RemoteClient":
        address, access, transport = self._made_of
        if transport is not None:
            raise TypeError("a RemoteClient with a transport of its own cannot be copied or pickled")
        return _again(type(self), address, self.timeout, self.connect_timeout, self.retries, access)

    def __reduce__(self) -> Any:
        address, access, transport = self._made_of
        if transport is not None:
            raise TypeError("a RemoteClient with a transport of its own cannot be copied or pickled")
        if access.has_secrets:
            raise TypeError("a RemoteClient with a token, headers or a certificate cannot be pickled: they would leak")
        return _again, (type(self), address, self.timeout, self.connect_timeout, self.retries, access)

    def __repr__(self) -> str:
        return f"RemoteClient({self.address!r})"

    def _name(self, evaluation: bytes) -> str:
        last = self._last_key
        if last is None or last[0] is not evaluation:
            last = self._last_key = evaluation, hashlib.sha256(evaluation).hexdigest()
        return last[1]

    def _upload(self, evaluation: bytes, key: str, deadline: float) -> None:
        what = f"upload of the evaluation key to {self.address}"
        answer = self._exchange.ask_again("PUT", f"/keys/{key}", what, self.timeout, deadline, content=evaluation)
        if answer.status != 204:
            raise answer.refusal(what)


def check_seconds(name: str, seconds: float) -> None:
    """Refuse an invalid time-out.

    Raises:
        ValueError: naming the parameter.
    """
    if not 0 < seconds < float("inf"):
        raise ValueError(f"{name} = {seconds}: expected a positive number of seconds")


def _again(
    kind: type[RemoteClient], address: str, timeout: float, connect_timeout: float, retries: int, access: Access
) -> RemoteClient:
    return kind(address, timeout, connect_timeout=connect_timeout, retries=retries, **vars(access))
