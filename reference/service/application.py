"""The server side of `protocol` as an ASGI application: it takes keys and ciphertexts and returns results."""

import asyncio
import hashlib
import importlib.metadata
import logging
import re
import time
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..encrypted.backends import MakeBackend
from ..encrypted.encryption import Backend, EncryptionError
from ..encrypted.noise import why_insecure
from .admission import Quotas, Tokens, busy, client_of
from .key_store import CiphertextStore, KeyStore
from .product_queue import ProductQueue
from .protocol import (
    BYTES,
    CIPHERTEXT_HEADER,
    CIPHERTEXT_UNKNOWN,
    KEY_HEADER,
    PROTOCOL,
    PROTOCOL_HEADER,
    Limits,
)
from .request_body import read_body
from .request_names import inline_key, key_name, parameter
from .worker import Model, Workers, load

CLIENT_GONE = 499  # for the log only, as in other servers

_log = logging.getLogger(__name__)


def application(
    model_dir: str | Path,
    backend: MakeBackend,
    workers: int = 1,
    limits: Limits | None = None,
    tokens: Collection[str] = (),
) -> "Application":
    """The server as an ASGI application that any ASGI server can run; `close` ends its processes.

    Args:
        the same: as in `serve`.
    Raises:
        ValueError, ImportError: as in `serve`.
    """
    limits, known = limits or Limits(), Tokens(tokens)
    models = load(Path(model_dir), backend)
    return Application(models, Workers(Path(model_dir), backend, workers, limits), workers, limits, known)


class Application:
    """See `application`."""

    def __init__(
        self, models: dict[str, Model], processes: Workers, workers: int, limits: Limits, tokens: Tokens
    ) -> None:
        self.models = {name: _described(model) for name, model in models.items()}
        self.insecure = {name: why for name, model in models.items() if (why := why_insecure(model.parameters))}
        self.backends: dict[bytes, Backend] = {m.parameters.fingerprint(): m.backend for m in models.values()}
        self.limits, self.tokens, self.quotas = limits, tokens, Quotas(limits)
        self.keys = KeyStore(limits)
        self.ciphertexts = CiphertextStore(limits.ciphertexts_bytes)
        self.requests = 0
        self.stopping: Callable[[], bool] = bool  # replaced by the listener, which knows
        self._uploads = asyncio.Semaphore(limits.uploads)
        self.products = ProductQueue(processes, workers, limits)
        routes = [
            Route("/health", self._health, methods=["GET"]),
            Route("/keys/{name}", self._take_key, methods=["PUT"]),
            Route("/evaluate", self._evaluate, methods=["POST"]),
        ]
        answers: Any = {HTTPException: _explained, Exception: _explained}
        self._app: ASGIApp = Starlette(routes=routes, exception_handlers=answers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, and log one line about it."""
        began, status, received, sent = time.monotonic(), CLIENT_GONE, 0, 0

        async def counted_receive() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            return message

        async def counted_send(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (PROTOCOL_HEADER.lower().encode(), PROTOCOL.encode())]
            sent += len(message.get("body", b""))
            await send(message)

        try:
            try:
                self._admit(HTTPConnection(scope))
            except HTTPException as error:
                await _explained(None, error)(scope, counted_receive, counted_send)
            else:
                await self._app(scope, counted_receive, counted_send)
        except ClientDisconnect:
            status = CLIENT_GONE
        except asyncio.CancelledError:  # the server stops without waiting any longer
            stopped = HTTPException(503, "the server is stopping and could not wait for this request")
            await _explained(None, stopped)(scope, counted_receive, counted_send)
        except Exception as error:  # noqa: BLE001  (answered with 500; the text of the error may hold secrets)
            _log.error("%s at %s", type(error).__name__, _place(error))
        _log.info(
            "%s %s %d %.3f s, %d bytes in, %d out",
            scope["method"],
            _shown(scope),
            status,
            time.monotonic() - began,
            received,
            sent,
        )

    def close(self) -> None:
        """End all evaluations and their processes."""
        self.products.close()

    def _admit(self, request: HTTPConnection) -> None:
        """Refuse a request without a token, and one whose end is ambiguous: it may be two for another program."""
        close = {"Connection": "close"}
        if "transfer-encoding" in request.headers and "content-length" in request.headers:
            raise HTTPException(400, "both Content-Length and Transfer-Encoding came: expected one of them", close)
        self.tokens.check(request)

    async def _health(self, request: Request) -> Response:  # noqa: ARG002
        return JSONResponse(
            {"status": "ok", "version": _version(), "models": self.models, "requests": self.requests},
            headers={"Cache-Control": "no-store"},
        )

    async def _take_key(self, request: Request) -> Response:
        name = key_name(request.path_params["name"], "the path")
        client = client_of(request.client and request.client.host)
        if name in self.keys:
            return Response(status_code=204)
        with self.quotas.request(client):
            try:
                waiting = asyncio.timeout(self.limits.body_seconds)
                async with waiting, self.quotas.upload(client), self._uploads:
                    waiting.reschedule(None)
                    key = await self._body(request, "an evaluation key", self.limits.key_bytes)
                    await asyncio.to_thread(self._check_key, name, key)
            except TimeoutError:
                raise busy(f"{self.limits.uploads} evaluation keys are arriving") from None
            self.keys.add(name, key, client)
        return Response(status_code=204)

    def _check_key(self, name: str, key: bytes) -> None:
        """Refuse a key that is not whole, or that no model here can use."""
        if hashlib.sha256(key).hexdigest() != name:
            raise HTTPException(422, f"{len(key)} bytes came with another hash than announced: cut off or changed")
        reasons = []
        for backend in self.backends.values():
            check: Callable[[bytes], object] | None = getattr(backend, "check_evaluation", None)
            if check is None:
                return
            try:
                check(key)
            except EncryptionError as error:
                reasons.append(str(error)[:400])
            else:
                return
        raise HTTPException(422, "; ".join(reasons))

    async def _evaluate(self, request: Request) -> Response:
        model, module = (parameter(request, name) for name in ("model", "module"))
        if model not in self.models:
            raise HTTPException(404, f"unknown model {model[:100]!r}: expected one of {', '.join(self.models)}")
        modules = self.models[model]["modules"]
        if module not in modules:
            raise HTTPException(404, f"{model} has no module {module[:100]!r}: expected one of {', '.join(modules)}")
        named = request.headers.get(KEY_HEADER, "")
        inline = inline_key(named) if named.startswith("=") else None
        name = key_name(named, f"the header {KEY_HEADER}") if inline is None else hashlib.sha256(inline).hexdigest()

        def key_in_use() -> AbstractContextManager[bytes]:
            return self.keys.in_use(name) if inline is None else nullcontext(inline)

        deadline = time.monotonic() + self.limits.request_seconds
        with key_in_use():
            pass  # a missing key is told before the body is read
        with self.quotas.request(client_of(request.client and request.client.host)):
            ciphertext = await self._ciphertext(request)
            if self.requests >= self.limits.requests:
                raise busy(f"{self.requests} requests are running or waiting")
            self.requests += 1
            try:
                with key_in_use() as key:
                    result = await self.products.evaluated(request, deadline, model, module, name, key, ciphertext)
            finally:
                self.requests -= 1
        return Response(result, media_type=BYTES, headers={"Cache-Control": "no-store"})

    async def _ciphertext(self, request: Request) -> bytes:
        """The ciphertext of a request: its body, or one that was kept under the name that the request gives."""
        name = request.headers.get(CIPHERTEXT_HEADER)
        if name is not None and not re.fullmatch(r"[0-9a-f]{64}", name):
            raise HTTPException(400, f"the header {CIPHERTEXT_HEADER} is no name: expected 64 hexadecimal digits")
        body = await self._body(request, "a ciphertext", self.limits.ciphertext_bytes)
        if name is None:
            return body
        if body:
            self.ciphertexts.add(name, body)
            return body
        kept = self.ciphertexts.get(name)
        if kept is None:
            raise HTTPException(CIPHERTEXT_UNKNOWN, "this ciphertext is not here any more: send it again")
        return kept

    async def _body(self, request: Request, what: str, most: int) -> bytes:
        return await read_body(request, what, most, self.limits, self.stopping)


def _explained(request: Request | None, error: Exception) -> JSONResponse:  # noqa: ARG001
    """The answer for an error."""
    if isinstance(error, HTTPException):
        return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)
    return JSONResponse({"error": "the server failed, see its log"}, 500)


def _described(model: Model) -> dict[str, Any]:
    parameters = model.parameters
    return {
        "parameters": parameters.name,
        "secure": parameters.secure,
        "modules": sorted(model.weights),
        "digests": model.digests,
    }


def _version() -> str:
    try:
        return importlib.metadata.version("loraspec")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _shown(scope: Scope) -> str:
    """The percent-encoded path and query for the log; the name of a key is shortened."""
    query = scope["query_string"].decode("ascii", "replace")
    path = scope["raw_path"].decode("ascii", "replace")
    path = re.sub(r"^/keys/([0-9a-f]{8})[0-9a-f]{56}$", r"/keys/\1…", path)
    return f"{path}?{query}"[:300] if query else path[:300]


def _place(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "?" if trace is None else f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
