"""`loraspec demo encryption-costs`: the cost of one encrypted product under each backend, in one run."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from conformance.demo.output import json_text, line, seconds_of, size_of, write_files
from conformance.report.record_json import as_json

SHAPES = ((2048, 512, 512), (64, 512, 512), (1, 512, 512))
HEADINGS = (
    "backend",
    "M·K·N",
    "encrypt",
    "server",
    "decrypt",
    "server, a row",
    "÷ float64",
    "up",
    "down",
    "key",
    "wrong",
    "secure",
)
NOTE = (
    "CPU seconds of all threads. A backend without packing takes the same time for each row, so one row is measured. "
    "÷ float64 compares the server with the plain product. Wrong counts results that are not exact. The key goes to "
    "the server once."
)


@dataclass(frozen=True)
class Cost:
    """The cost of a product [M, K] · [K, N] with 8-bit operands.

    Attributes:
        encrypt, server, decrypt: CPU seconds.   row: those of the server for a row.
        over_float64: those of the server over the plain product's.
        up, down: bytes.   key: bytes of the evaluation key.   wrong: the number of results that are off, of M·N.
    """

    backend: str
    M: int
    K: int
    N: int
    encrypt: float
    server: float
    decrypt: float
    row: float
    over_float64: float
    up: int
    down: int
    key: int
    wrong: int
    secure: bool


def costs(
    backends: tuple[str, ...], shapes: tuple[tuple[int, int, int], ...], say: Callable[[str], object]
) -> list[Cost]:
    """Measure every backend at every shape, on one thread of torch; a slow backend on one row of each (K, N)."""
    from reference.encrypted.backends import NAMED, backend_for

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = []
    try:
        for name in backends:
            say(f"… {name}")
            backend: Any = backend_for(NAMED[name])
            packed = hasattr(backend, "fresh_keys") and backend.fresh_keys
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*not secure")  # the table says so
                keys = backend.keygen()
            for m, k, n in shapes if packed else dict.fromkeys((1, *shape[1:]) for shape in shapes):
                say(f"… {name}: {m}·{k}·{n}")
                found.append(_cost(name, backend, keys, m, k, n))
    finally:
        torch.set_num_threads(threads)
    return found


def _cost(name: str, backend: Any, keys: Any, m: int, k: int, n: int) -> Cost:
    generator = torch.Generator().manual_seed(0)
    q = torch.randint(0, 256, (m, k), generator=generator)
    weight = torch.randint(-128, 128, (n, k), generator=generator)
    options = {"outputs": n} if getattr(backend, "takes_outputs", False) else {}
    backend.evaluate(backend.encrypt(q[:1, :1], keys), weight[:1, :1], keys.evaluation)  # loads library and key
    ciphertext, encrypt = _timed(lambda: backend.encrypt(q, keys, **options))
    answer, server = _timed(lambda: backend.evaluate(ciphertext, weight, keys.evaluation))
    result, decrypt = _timed(lambda: backend.decrypt(answer, m, n, keys))
    x, w = q.double(), weight.double().T
    _, plain = _timed(lambda: [x @ w for _ in range(20)])
    parameters = backend.parameters
    return Cost(
        name,
        m,
        k,
        n,
        encrypt=encrypt,
        server=server,
        decrypt=decrypt,
        row=server / m,
        over_float64=server / (plain / 20),
        up=len(ciphertext),
        down=len(answer),
        key=len(keys.evaluation),
        wrong=int((result != q @ weight.T).sum()),
        secure=parameters.secure,
    )


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    began = time.process_time()
    result = work()
    return result, time.process_time() - began


def rows(found: list[Cost]) -> list[tuple[str, ...]]:
    """The table's rows, with cells in the order of `HEADINGS`."""
    return [
        (
            each.backend,
            f"{each.M}·{each.K}·{each.N}",
            *(seconds_of(seconds) for seconds in (each.encrypt, each.server, each.decrypt, each.row)),
            f"{each.over_float64:.3g}",
            *(size_of(number) for number in (each.up, each.down, each.key)),
            str(each.wrong),
            "yes" if each.secure else "no",
        )
        for each in found
    ]


def markdown(found: list[Cost]) -> str:
    """The table with its note."""
    lines = ["# The cost of an encrypted product", "", NOTE, "", line(HEADINGS), line(["---"] * 2 + ["---:"] * 10)]
    return "\n".join([*lines, *(line(row) for row in rows(found))]) + "\n"


def write(folder: Path, found: list[Cost]) -> None:
    """Write the table and all figures."""
    held = {
        "encryption-costs.json": json_text({"costs": as_json(found)}),
        "encryption-costs.md": markdown(found).encode(),
    }
    write_files(folder, held)
