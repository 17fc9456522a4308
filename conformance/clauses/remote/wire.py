"""The wire between a client and its server: a local relay that records every byte and can be cut."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

HOST = "127.0.0.1"
PIECE = 2**18


class Wire:
    """A relay of connections to a port of this machine; a context manager that closes it at the end.

    Attributes:
        sent, received: the bytes from and to clients, one bytearray for each connection.
    """

    def __init__(self, port: int) -> None:
        self.upstream = port
        self.sent: list[bytearray] = []
        self.received: list[bytearray] = []
        self._how = "up"
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listening = self._bound(0)
        self.port: int = self._listening.getsockname()[1]

    @property
    def address(self) -> str:
        """The address that a client is given."""
        return f"http://{HOST}:{self.port}"

    def __enter__(self) -> Wire:
        self._listen()
        return self

    def __exit__(self, *_: object) -> None:
        self._end(self._listening)
        self._cut()

    def traffic(self) -> list[bytes]:
        """All recorded bytes, by connection and direction."""
        with self._lock:
            return [bytes(part) for part in (*self.sent, *self.received)]

    def sent_bytes(self) -> int:
        """The number of bytes that clients have sent so far."""
        with self._lock:
            return sum(map(len, self.sent))

    def down(self, how: str) -> None:
        """Break all connections; new ones are `refused`, or accepted and `closed` at the first bytes."""
        self._how = how
        if how == "refused":
            self._end(self._listening)
            self._listening = self._bound(self.port)  # bound without listening, so that no other process takes the port
        self._cut()

    def up(self) -> None:
        """Relay connections again."""
        refused, self._how = self._how == "refused", "up"
        if refused:
            self._listen()

    def _bound(self, port: int) -> socket.socket:
        made = socket.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((HOST, port))
        return made

    def _listen(self) -> None:
        self._listening.listen()
        threading.Thread(target=self._accept, args=(self._listening,), daemon=True).start()

    def _accept(self, listening: socket.socket) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = listening.accept()
                threading.Thread(target=self._relay, args=(client,), daemon=True).start()

    def _relay(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection((HOST, self.upstream))
        except OSError:
            client.close()
            return
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # do not delay small pieces
        there, back = bytearray(), bytearray()
        with self._lock:
            self.sent.append(there)
            self.received.append(back)
            self._open |= {client, server}
        answers = threading.Thread(target=self._pump, args=(server, client, back), daemon=True)
        answers.start()
        self._pump(client, server, there)
        answers.join()
        with self._lock:
            self._open -= {client, server}
        client.close()
        server.close()

    def _pump(self, source: socket.socket, target: socket.socket, kept: bytearray) -> None:
        """Pass bytes on until the source ends, then close the other direction."""
        with suppress(OSError):
            while piece := source.recv(PIECE):
                if self._how == "closed":
                    source.shutdown(socket.SHUT_RDWR)
                    break
                with self._lock:
                    kept += piece
                target.sendall(piece)
        with suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    def _cut(self) -> None:
        with self._lock:
            for connection in self._open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def _end(self, listening: socket.socket) -> None:
        with suppress(OSError):
            listening.shutdown(socket.SHUT_RDWR)  # wakes the thread in accept
        listening.close()
