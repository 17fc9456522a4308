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

MIB = 2**20


def add(commands: output.Commands) -> None:
    """The command and its options."""
    serve = commands.add_parser("serve", help="evaluate encrypted inputs for clients that keep their keys")
    whole: dict[str, Any] = {"type": _whole, "metavar": "N"}
    serve.add_argument("model_dir", metavar="MODEL_DIR", type=Path, help="the folder server/ that a split model wrote")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    serve.add_argument("--port", type=_port, default=8000, help="port (default 8000); 0 for a free one")
    serve.add_argument("--workers", **whole, default=1, help="products evaluated at once (default 1)")
    serve.add_argument("--backend", metavar="MODULE:NAME", help="creates another Backend from a model's parameters")
    serve.add_argument("--max-request", **whole, help="the most MiB of a ciphertext")
    serve.add_argument("--max-key", **whole, help="the most MiB of an evaluation key")
    serve.add_argument("--max-keys", **whole, help="the number of evaluation keys to keep")
    serve.add_argument("--stall", type=_seconds, metavar="S", help="seconds after which a silent client is dropped")
    serve.add_argument("--timeout", type=_seconds, metavar="S", help="seconds for one product")
    serve.add_argument("--grace", type=_seconds, default=600.0, metavar="S", help="seconds to finish requests at exit")


def execute(options: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT."""
    from reference.service.server import serve

    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO, stream=sys.stderr)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
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

    asked: dict[str, Any] = {
        "ciphertext_bytes": options.max_request and options.max_request * MIB,
        "key_bytes": options.max_key and options.max_key * MIB,
        "keys": options.max_keys,
        "stall_seconds": options.stall,
        "head_seconds": options.stall,
        "evaluation_seconds": options.timeout,
    }
    return Limits(**{name: value for name, value in asked.items() if value})


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


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds")
    return seconds
