"""The protocol between a client and a server that multiplies its encrypted inputs, and what the server grants.

Over HTTP, bodies being raw bytes:

- ``GET /health``: JSON; the version, and the models with their modules.
- ``PUT /keys/SHA256``: an evaluation key under the hash of its bytes; 204, or 422 if the hash is another.
- ``POST /evaluate?model=…&module=…`` with the header ``Evaluation-Key: SHA256``: a ciphertext; 200 and the result, or
  428 if the server does not have the key (any more), which is then uploaded.

All else is an error: a fitting status, and JSON ``{"error": …}``. Every answer has ``Loraspec-Protocol: 1``.
"""

from dataclasses import dataclass

PROTOCOL = "1"
PROTOCOL_HEADER, KEY_HEADER = "Loraspec-Protocol", "Evaluation-Key"
BYTES = "application/octet-stream"
KEY_UNKNOWN = 428
INSTALL = "pip install 'loraspec[remote]'"


@dataclass(frozen=True)
class Limits:
    """What one server grants; it holds at most about ``keys_bytes + uploads·key_bytes + requests·ciphertext_bytes``.

    Attributes:
        ciphertext_bytes, key_bytes: of one body; more is refused with 413.
        keys, keys_bytes: how many evaluation keys are kept, and their sum. The least recently used one goes; never
            one that a request is using.
        requests: evaluations running or waiting at once; more are refused with 503.
        uploads: keys arriving at once; more wait, unread, for up to body_seconds.
        connections: at once; more are refused with 503.
        head_seconds: for a request line and headers, and for what is left of a body that was refused.
        stall_seconds: between two pieces of a body, at either side.
        body_seconds: for a whole body.
        evaluation_seconds: for one product; its process is ended then.
    """

    ciphertext_bytes: int = 64 * 2**20
    key_bytes: int = 512 * 2**20
    keys: int = 16
    keys_bytes: int = 4 * 2**30
    requests: int = 32
    uploads: int = 2
    connections: int = 256
    head_seconds: float = 20.0
    stall_seconds: float = 30.0
    body_seconds: float = 600.0
    evaluation_seconds: float = 3600.0
