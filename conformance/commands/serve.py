"""`loraspec serve`: evaluate encrypted inputs for clients that keep their keys."""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conformance.commands import output
from conformance.errors import UsageError

if TYPE_CHECKING:
    from reference.service.protocol import Limits

LIMITS = {
    "ciphertext_bytes": ("64M", "size of a ciphertext; K, M and G stand for 2^10, 2^20 and 2^30 bytes"),
    "key_bytes": ("512M", "size of an evaluation key"),
    "keys": ("16", "evaluation keys to keep"),
    "keys_bytes": ("4G", "size of all evaluation keys"),
    "client_keys": ("4", "evaluation keys of one client"),
    "ciphertexts_bytes": ("256M", "size of the ciphertexts kept for several modules"),
    "requests": ("32", "evaluations that run or wait"),
    "client_requests": ("16", "requests of one client at once"),
    "uploads": ("2", "evaluation keys that arrive at once"),
    "connections": ("256", "connections at once"),
    "client_connections": ("64", "connections of one client at once"),
    "head_seconds": ("20", "time for the head of a request"),
    "stall_seconds": ("30", "time after which a silent client is dropped"),
    "least_rate": ("65536", "bytes a second that a body must reach"),
    "body_seconds": ("600", "time for a body"),
    "evaluation_seconds": ("3600", "time for one product"),
    "request_seconds": ("7200", "time for a whole request, waiting included"),
    "worker_bytes": ("none", "memory that a process of products may take beyond its start"),
}
"""Each limit with its default and its help, written here because importing `Limits` takes seconds; a test compares."""

UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


def add(commands: output.Commands) -> None:
    """The command and its options."""
    serve = commands.add_parser("serve", help="evaluate encrypted inputs for clients that keep their keys")
    whole: dict[str, Any] = {"type": _whole, "metavar": "N"}
    serve.add_argument("model_dir", metavar="MODEL_DIR", type=Path, help="the folder server/ that a split model wrote")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    serve.add_argument("--port", type=_port, default=8000, help="port (default 8000); 0 for a free one")
    serve.add_argument("--workers", **whole, default=1, help="products evaluated at once (default 1)")
    serve.add_argument("--backend", metavar="MODULE:NAME", help="creates another Backend from a model's parameters")
    serve.add_argument("--grace", type=_seconds, default=600.0, metavar="S", help="seconds to finish requests at exit")
    tls = serve.add_argument_group("who may use it")
    file: dict[str, Any] = {"type": Path, "metavar": "FILE"}
    tls.add_argument("--certificate", **file, help="the server's certificate, PEM: speak TLS")
    tls.add_argument("--private-key", **file, help="its key, PEM without a password")
    tls.add_argument("--client-ca", **file, help="admit only clients with a certificate of these authorities")
    tls.add_argument("--tokens", **file, help="admit only requests with a bearer token of this file, one in a line")
    limits = serve.add_argument_group("limits", "each is a field of reference.service.protocol.Limits")
    for name, (default, text) in LIMITS.items():
        kind: Any = size_of if name.endswith("_bytes") else _seconds if name.endswith("_seconds") else _whole
        metavar = {size_of: "BYTES", _seconds: "S", _whole: "N"}[kind]
        option = "--" + name.replace("_", "-")
        limits.add_argument(option, dest=name, type=kind, metavar=metavar, help=f"{text} (default {default})")


def execute(options: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT."""
    from reference.service.server import serve

    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO, stream=sys.stderr)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    logging.captureWarnings(True)
    given = {"backend": _named(options.backend)} if options.backend else {}
    try:
        serve(
            options.model_dir,
            options.host,
            options.port,
            workers=options.workers,
            limits=_limits(options),
            grace=options.grace,
            ready=_ready,
            certificate=options.certificate,
            private_key=options.private_key,
            client_ca=options.client_ca,
            tokens=_tokens(options.tokens),
            **given,
        )
    except (ValueError, ImportError) as error:
        raise UsageError(str(error)) from error
    except OSError as error:
        raise UsageError(f"cannot listen on {options.host} port {options.port}: {error.strerror or error}") from error
    return 0


def _ready(address: str, models: list[str]) -> None:
    sys.stdout.write(f"serving {', '.join(models)} at {address}\n")
    sys.stdout.flush()


def _limits(options: argparse.Namespace) -> Limits:
    from reference.service.protocol import Limits

    return Limits(**{name: value for name in LIMITS if (value := getattr(options, name)) is not None})


def _tokens(path: Path | None) -> list[str]:
    """The tokens of a file; empty lines and lines that begin with # are left out."""
    if path is None:
        return []
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"tokens {path}: {error}: expected a text file with one token in a line") from error
    tokens = [line for line in lines if line and not line.startswith("#")]
    if not tokens:
        raise UsageError(f"tokens {path} holds no token: expected one in a line, or no option --tokens")
    return tokens


def _named(text: str) -> Any:
    module, _, name = text.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"backend {text!r}: expected an importable module:name ({error})") from error


def _whole(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 2**20:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of 1 or more")
    return int(text)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: expected 0 to 65535")
    return int(text)


def size_of(text: str) -> int:
    """A size in bytes, from a number that K, M or G may follow."""
    number, unit = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text, "")
    if not number.isdecimal() or not int(number) or unit not in UNITS:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: expected bytes, or a number with K, M or G")
    return int(number) * UNITS[unit]


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return seconds
