"""Reading the body of a request, within its limits of bytes, seconds and rate."""

import asyncio
import time
from collections.abc import Callable

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from .protocol import Limits

TICK = 0.5  # seconds after which the rate of a body is looked at again


async def read_body(request: Request, what: str, most: int, limits: Limits, stopping: Callable[[], bool]) -> bytes:
    """The whole body.

    Args:
        what: its name, for errors.   most: its size at most.
        stopping: whether the server stops; what is then still arriving is refused.
    Raises:
        HTTPException: 413 for a larger body, 408 for one that stalls or comes too slowly, 503 when the server stops.
        ClientDisconnect: if the client has closed the connection.
    """
    too_large = HTTPException(413, f"{what} of more than {most} bytes: expected at most that")
    announced = request.headers.get("content-length")
    if announced is not None and int(announced) > most:
        raise too_large
    pieces: list[bytes] = []
    began = last = time.monotonic()
    size, more = 0, True
    message: asyncio.Task[object] | None = None
    try:
        while more:
            message = message or asyncio.ensure_future(request.receive())
            await asyncio.wait({message}, timeout=min(TICK, limits.stall_seconds))
            now = time.monotonic()
            if message.done():
                came: dict[str, object] = message.result()  # type: ignore[assignment]
                message = None
                if came["type"] == "http.disconnect":
                    raise ClientDisconnect
                piece = bytes(came.get("body", b""))  # type: ignore[call-overload]
                pieces.append(piece)
                size, last, more = size + len(piece), now, bool(came.get("more_body", False))
                if size > most:
                    raise too_large
            if more:
                check_pace(what, size, now - began, now - last, limits)
                if stopping():
                    raise HTTPException(503, "the server is stopping", headers={"Connection": "close"})
    finally:
        if message is not None:
            message.cancel()
    return b"".join(pieces)


def check_pace(what: str, size: int, seconds: float, silent: float, limits: Limits) -> None:
    """Refuse a body of which so many bytes came in so many seconds, none in the last `silent` seconds."""
    slow = seconds > limits.stall_seconds and size < limits.least_rate * (seconds - limits.stall_seconds)
    if silent < limits.stall_seconds and seconds < limits.body_seconds and not slow:
        return
    raise HTTPException(
        408,
        f"{what} came too slowly, {size} bytes of it: expected the next piece within {limits.stall_seconds:g} s, "
        f"{limits.least_rate} bytes per second and all within {limits.body_seconds:g} s",
        headers={"Connection": "close"},
    )
