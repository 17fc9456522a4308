"""The server side of `protocol` as an ASGI application: it takes keys and ciphertexts and returns results."""

import asyncio
import base64
import binascii
import hashlib
import importlib.metadata
import logging
import re
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..encrypted.backends import MakeBackend
from .key_store import CiphertextStore, KeyStore
from .protocol import (
    BYTES,
    CIPHERTEXT_HEADER,
    CIPHERTEXT_UNKNOWN,
    INLINE_KEY_BYTES,
    KEY_HEADER,
    PROTOCOL,
    PROTOCOL_HEADER,
    Limits,
)
from .worker import EvaluationError, Model, RefusedError, TooLongError, Workers, load

CLIENT_GONE = 499  # for the log only, as in other servers

_log = logging.getLogger(__name__)


def application(
    model_dir: str | Path, backend: MakeBackend, workers: int = 1, limits: Limits | None = None
) -> "Application":
    """The server as an ASGI application that any ASGI server can run; `close` ends its processes.

    Raises:
        ValueError, ImportError: as in `serve`.
    """
    limits = limits or Limits()
    models = load(Path(model_dir), backend)
    return Application(models, Workers(Path(model_dir), backend, workers, limits.evaluation_seconds), workers, limits)


class Application:
    """See `application`."""

    def __init__(self, models: dict[str, Model], processes: Workers, workers: int, limits: Limits) -> None:
        self.models = {name: _described(model) for name, model in models.items()}
        self.limits = limits
        self.keys = KeyStore(limits)
        self.ciphertexts = CiphertextStore(limits.ciphertexts_bytes)
        self.processes = processes
        self.requests = 0
        self._uploads = asyncio.Semaphore(limits.uploads)
        self._free = asyncio.Semaphore(workers)
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="evaluation")
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
        self.processes.close()
        self._threads.shutdown(cancel_futures=True)

    async def _health(self, request: Request) -> Response:  # noqa: ARG002
        return JSONResponse(
            {"status": "ok", "version": _version(), "models": self.models, "requests": self.requests},
            headers={"Cache-Control": "no-store"},
        )

    async def _take_key(self, request: Request) -> Response:
        name = _key_name(request.path_params["name"], "the path")
        if name in self.keys:
            return Response(status_code=204)
        try:
            await asyncio.wait_for(self._uploads.acquire(), self.limits.body_seconds)
        except TimeoutError:
            raise _busy(f"{self.limits.uploads} evaluation keys are arriving") from None
        try:
            key = await _body(request, "an evaluation key", self.limits.key_bytes, self.limits)
            if (await asyncio.to_thread(hashlib.sha256, key)).hexdigest() != name:
                raise HTTPException(422, f"{len(key)} bytes came with another hash than announced: cut off or changed")
            self.keys.add(name, key)
        finally:
            self._uploads.release()
        return Response(status_code=204)

    async def _evaluate(self, request: Request) -> Response:
        model, module = (_parameter(request, name) for name in ("model", "module"))
        if model not in self.models:
            raise HTTPException(404, f"unknown model {model[:100]!r}: expected one of {', '.join(self.models)}")
        modules = self.models[model]["modules"]
        if module not in modules:
            raise HTTPException(404, f"{model} has no module {module[:100]!r}: expected one of {', '.join(modules)}")
        named = request.headers.get(KEY_HEADER, "")
        inline = _inline_key(named) if named.startswith("=") else None
        name = _key_name(named, f"the header {KEY_HEADER}") if inline is None else hashlib.sha256(inline).hexdigest()
        if self.requests >= self.limits.requests:
            raise _busy(f"{self.requests} requests are running or waiting")
        self.requests += 1
        try:
            with nullcontext(inline) if inline is not None else self.keys.in_use(name) as key:
                ciphertext = await self._ciphertext(request)
                result = await self._product(request, model, module, name, key, ciphertext)
        finally:
            self.requests -= 1
        return Response(result, media_type=BYTES, headers={"Cache-Control": "no-store"})

    async def _ciphertext(self, request: Request) -> bytes:
        """The ciphertext of a request: its body, or one that was kept under the name that the request gives."""
        name = request.headers.get(CIPHERTEXT_HEADER)
        if name is not None and not re.fullmatch(r"[0-9a-f]{64}", name):
            raise HTTPException(400, f"the header {CIPHERTEXT_HEADER} is no name: expected 64 hexadecimal digits")
        body = await _body(request, "a ciphertext", self.limits.ciphertext_bytes, self.limits)
        if name is None:
            return body
        if body:
            self.ciphertexts.add(name, body)
            return body
        kept = self.ciphertexts.get(name)
        if kept is None:
            raise HTTPException(CIPHERTEXT_UNKNOWN, "this ciphertext is not here any more: send it again")
        return kept

    async def _product(self, request: Request, *job: Any) -> bytes:
        async with self._free:
            if await request.is_disconnected():
                raise ClientDisconnect
            try:
                evaluate = self.processes.evaluate
                return await asyncio.get_running_loop().run_in_executor(self._threads, evaluate, *job)
            except RefusedError as error:
                raise HTTPException(422, str(error)) from None
            except TooLongError as error:
                raise HTTPException(504, str(error)) from None
            except EvaluationError as error:
                _log.error("%s", error)
                raise HTTPException(500, str(error)) from None


async def _body(request: Request, what: str, most: int, limits: Limits) -> bytes:
    """Read the whole body, within its limits of bytes and seconds."""
    too_large = HTTPException(413, f"{what} of more than {most} bytes: expected at most that")
    if int(request.headers.get("content-length", 0)) > most:
        raise too_large
    pieces, size = [], 0
    stream = request.stream()
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for piece in _steady(stream, limits.stall_seconds):
                pieces.append(piece)
                size += len(piece)
                if size > most:
                    raise too_large
    except TimeoutError:
        raise HTTPException(
            408,
            f"{what} came too slowly, {size} bytes of it: expected the next piece within {limits.stall_seconds:g} s "
            f"and all within {limits.body_seconds:g} s",
            headers={"Connection": "close"},
        ) from None
    return b"".join(pieces)


async def _steady(stream: AsyncIterator[bytes], seconds: float) -> AsyncIterator[bytes]:
    while True:
        try:
            yield await asyncio.wait_for(anext(stream), seconds)
        except StopAsyncIteration:
            return


def _parameter(request: Request, name: str) -> str:
    values = request.query_params.getlist(name)
    if len(values) != 1:
        raise HTTPException(400, f"{len(values)} query parameters {name!r} came: expected one")
    return values[0]


def _key_name(text: str, where: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise HTTPException(400, f"{where} names no evaluation key: expected its SHA-256 as 64 hexadecimal digits")
    return text


def _inline_key(text: str) -> bytes:
    """The evaluation key in a header."""
    try:
        key = base64.b64decode(text[1:], validate=True)
    except binascii.Error:
        key = b""
    if not 0 < len(key) <= INLINE_KEY_BYTES:
        expected = f"=BASE64 of 1 to {INLINE_KEY_BYTES} bytes"
        raise HTTPException(400, f"the header {KEY_HEADER} holds no evaluation key: expected {expected}")
    return key


def _busy(why: str) -> HTTPException:
    return HTTPException(503, f"{why}: the server takes no more at once", headers={"Retry-After": "5"})


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
