"""A server's connections, which are closed if the client neither finishes its request nor reads the answer."""

import asyncio
from collections import Counter
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from .admission import client_of
from .protocol import Limits


class Connection(H11Protocol):
    """One connection; a subclass sets `limits`, and `clients`, the number of connections of each client."""

    limits: Limits
    clients: Counter[str]
    _client: str | None = None
    _without_request: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        client = client_of(self.client[0] if self.client else None)
        if self.clients[client] >= self.limits.client_connections:
            transport.abort()
            return
        self._client = client
        self.clients[client] += 1
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._without_request, self._unread):
            if timer is not None:
                timer.cancel()
        if self._client is not None:
            self.clients[self._client] -= 1
            if not self.clients[self._client]:
                del self.clients[self._client]
            self._client = None
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._look(self.transport.get_write_buffer_size() + 1)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()

    def _watch(self) -> None:
        """Limit the time without a running request, whether a part of a head or an unread body has come."""
        if self.cycle is not None and not self.cycle.response_complete:
            if self._without_request is not None:
                self._without_request.cancel()
                self._without_request = None
        elif self._without_request is None and not self.transport.is_closing():
            self._without_request = self.loop.call_later(self.limits.head_seconds, self._give_up)

    def _give_up(self) -> None:
        self._without_request = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()

    def _look(self, before: int) -> None:
        """Abort if the client has read nothing of the answer since the last check."""
        left = self.transport.get_write_buffer_size()
        if left >= before:
            self.transport.abort()
        else:
            self._unread = self.loop.call_later(self.limits.stall_seconds, self._look, left)
