"""The protocol between a client and a server that multiplies encrypted inputs, and the limits of the server.

The protocol uses HTTP with raw bytes as bodies:

- ``GET /health`` returns JSON with the version, and the models with their modules and the digests of these.
- ``PUT /keys/SHA256`` uploads an evaluation key under its hash; the status is 204, or 422 for a wrong hash.
- ``POST /evaluate?model=…&module=…`` with the header ``Evaluation-Key: SHA256`` sends a ciphertext; the status is 200
  with the result, or 428 if the server does not have the key, which the client then uploads. A short key is sent in
  the header itself, as ``=BASE64``, and not kept. With the header ``Ciphertext: NAME``, 64 hexadecimal digits, the
  server keeps the ciphertext for a while under this name; a later request with the name and an empty body multiplies
  it again, by another module, or has the status 424 if the server lost it.

Every error has a fitting status and JSON ``{"error": …}``. Every answer has the header ``Loraspec-Protocol: 1``. A
server with tokens answers 401 to every request without ``Authorization: Bearer TOKEN``.
"""

from dataclasses import dataclass

PROTOCOL = "1"
PROTOCOL_HEADER, KEY_HEADER = "Loraspec-Protocol", "Evaluation-Key"
BYTES = "application/octet-stream"
CIPHERTEXT_HEADER = "Ciphertext"
INLINE_KEY_BYTES = 1024  # the longest key that is sent in a header
KEY_UNKNOWN, CIPHERTEXT_UNKNOWN = 428, 424
INSTALL = "pip install 'loraspec[remote]'"


@dataclass(frozen=True)
class Limits:
    """The limits of a server; it needs at most about ``keys_bytes + uploads·key_bytes + requests·ciphertext_bytes +
    ciphertexts_bytes``.

    A client is an IPv4 address, or the first 64 bits of an IPv6 address.

    Attributes:
        ciphertext_bytes, key_bytes: size of one body; a larger body is refused with 413.
        keys, keys_bytes: number and total size of the stored evaluation keys. If there is no room, idle keys of the
            client with the most keys are dropped first, the least recently used one before others.
        client_keys: keys stored for one client; a further key replaces the client's least recently used one.
        ciphertexts_bytes: total size of the ciphertexts that are kept for other modules; the oldest is dropped first.
        requests: evaluations that run or wait at the same time; further ones are refused with 503, once their body is
            there.
        client_requests: requests of one client at the same time, from their head to their answer; further ones are
            refused with 503.
        uploads: keys that arrive at the same time, one from each client; further ones wait, unread, for up to
            body_seconds.
        connections: connections at the same time; further ones are refused with 503.
        client_connections: connections of one client; further ones are closed.
        head_seconds: time for a request line and headers, and for the rest of a refused body.
        stall_seconds: time between two pieces of a body, in either direction.
        least_rate: bytes per second on average that a body must reach after stall_seconds.
        body_seconds: time for a whole body.
        evaluation_seconds: time for one product; after that its process is killed.
        request_seconds: time for a whole request, waiting included; after that its product is cancelled.
        worker_bytes: memory that a process of products may take beyond what it starts with; None for no limit.
    Raises:
        ValueError: naming a limit that is not positive.
    """

    ciphertext_bytes: int = 64 * 2**20
    key_bytes: int = 512 * 2**20
    keys: int = 16
    keys_bytes: int = 4 * 2**30
    client_keys: int = 4
    ciphertexts_bytes: int = 256 * 2**20
    requests: int = 32
    client_requests: int = 16
    uploads: int = 2
    connections: int = 256
    client_connections: int = 64
    head_seconds: float = 20.0
    stall_seconds: float = 30.0
    least_rate: int = 64 * 2**10
    body_seconds: float = 600.0
    evaluation_seconds: float = 3600.0
    request_seconds: float = 7200.0
    worker_bytes: int | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"the limit {name} = {value}: expected a positive number")
