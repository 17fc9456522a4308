"""A relay between a client and its server that changes the server's answers."""

from __future__ import annotations

import http.client
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from conformance.clauses.remote.wire import HOST

ENDLESS = 64 * 2**20  # bytes after which even an endless answer ends
PIECE = 2**16
LEFT_OUT = {"content-length", "transfer-encoding", "connection"}


class ForgingRelay:
    """A server on a free port that passes requests on; a context manager that closes it at the end.

    Attributes:
        how: how it changes the bodies of successful answers to POST: not, while it is empty; `stale`, the first to the
            same module; `cut off`; `longer`; `changed`, in one bit; `endless`.
        took: the bytes of the last endless answer that the client's end took.
    """

    def __init__(self, port: int) -> None:
        self.upstream, self.how, self.took = port, "", 0
        self.first: dict[str, bytes] = {}
        kind = type("Handler", (_Handler,), {"relay": self})
        self._server = ThreadingHTTPServer((HOST, 0), kind)
        self._server.daemon_threads = True

    @property
    def address(self) -> str:
        """The address that a client is given."""
        return f"http://{HOST}:{self._server.server_address[1]}"

    def __enter__(self) -> ForgingRelay:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.socket.close()  # without waiting for the connections that clients keep

    def forged(self, path: str, body: bytes) -> bytes:
        """An answer in place of the right one."""
        self.first.setdefault(path, body)
        middle = len(body) // 2
        return {
            "stale": self.first[path],
            "cut off": body[:-1],
            "longer": body + b"\0",
            "changed": body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :],
        }.get(self.how, body)


class _Handler(BaseHTTPRequestHandler):
    relay: ForgingRelay
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: Any) -> None:
        """Nothing: the server has its own log."""

    def _pass_on(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        upstream = http.client.HTTPConnection(HOST, self.relay.upstream)
        try:
            headers = {name: value for name, value in self.headers.items() if name.lower() not in LEFT_OUT}
            upstream.request(self.command, self.path, content, headers)
            answer = upstream.getresponse()
            body = answer.read()
        finally:
            upstream.close()
        forged = self.command == "POST" and answer.status == 200
        with suppress(OSError):  # the client has closed the connection
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in LEFT_OUT:
                    self.send_header(name, value)
            if forged and self.relay.how == "endless":
                self._send_endlessly()
                return
            body = self.relay.forged(self.path, body) if forged else body
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def _send_endlessly(self) -> None:
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        self.relay.took = 0
        while self.relay.took < ENDLESS:
            self.wfile.write(bytes(PIECE))
            self.relay.took += PIECE

    do_GET = do_PUT = do_POST = _pass_on
