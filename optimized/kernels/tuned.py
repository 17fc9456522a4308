"""Block configurations for named GPUs from `tuned.json`, which `optimized.kernels.tune` writes.

An entry applies to one kernel, dtype and device (a part of its name), and to the sizes in its buckets: M, N, K and R
rounded up to powers of two within `BOUNDS`; null matches any size. An entry with ``"origin": "modelled, not measured"``
contains a configuration but no times, so `wins` ignores it; a ``"measured"`` entry contains its times.
"""

import functools
import json
from pathlib import Path
from typing import Any

import torch

from optimized.kernels.tiles import Config

TABLE = Path(__file__).with_name("tuned.json")
MEASURED, MODELLED = "measured", "modelled, not measured"
FIELDS = ("kernel", "device", "dtype", "M", "N", "K", "R", "blocks", "num_warps", "num_stages", "origin")
MEASUREMENT = ("milliseconds", "instead_milliseconds", "versions")
BOUNDS = {"M": (256, 16384), "N": (1024, 16384), "K": (1024, 16384), "R": (16, 128)}


def bucket(axis: str, size: int) -> int:
    """The power of two that covers this size, within the axis' bounds."""
    least, most = BOUNDS[axis]
    return min(max(1 << max(size - 1, 0).bit_length(), least), most)


def tuned(kernel: str, device: torch.device, compute: torch.dtype, **sizes: int) -> Config | None:
    """The configuration of the best matching entry: measured before modelled, then with most sizes; or None."""
    if device.type != "cuda":
        return None
    found = _entry(kernel, torch.cuda.get_device_name(device), _name(compute), tuple(sorted(sizes.items())))
    return None if found is None else Config(found["blocks"], found["num_warps"], found["num_stages"])


def wins(kernel: str, device: str, compute: torch.dtype, **sizes: int) -> bool | None:
    """Whether the kernel was measured to be faster than the operations it replaces; None without a measurement."""
    found = _entry(kernel, device, _name(compute), tuple(sorted(sizes.items())))
    if found is None or found["origin"] != MEASURED:
        return None
    return bool(found["milliseconds"] < found["instead_milliseconds"])


def entries(path: Path = TABLE) -> list[dict[str, Any]]:
    """Every entry of a table.

    Raises:
        ValueError: naming the first incomplete entry.
    """
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["entries"]
    for entry in found:
        lacks = {*FIELDS} - {*entry}
        if entry.get("origin") == MEASURED:
            lacks |= {*MEASUREMENT} - {*entry}
        if lacks:
            raise ValueError(f"{path.name}: {entry} lacks {sorted(lacks)}")
        if entry["origin"] not in (MEASURED, MODELLED):
            raise ValueError(f"{path.name}: origin {entry['origin']!r}: expected {MEASURED!r} or {MODELLED!r}")
    return found


@functools.lru_cache(4096)
def _entry(kernel: str, device: str, dtype: str, sizes: tuple[tuple[str, int], ...]) -> dict[str, Any] | None:
    buckets = {axis: bucket(axis, size) for axis, size in sizes}
    fitting = [
        entry
        for entry in _shipped()
        if entry["kernel"] == kernel
        and entry["device"] in device
        and entry["dtype"] == dtype
        and all(entry[axis] in (None, size) for axis, size in buckets.items())
    ]
    return max(
        fitting, key=lambda e: (e["origin"] == MEASURED, sum(e[axis] is not None for axis in buckets)), default=None
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@functools.cache
def _shipped() -> list[dict[str, Any]]:
    return entries()


def write(found: list[dict[str, Any]], path: Path = TABLE) -> None:
    """Write a table with one entry per line."""
    lines = ",\n  ".join(json.dumps(entry) for entry in found)
    path.write_text(f'{{"entries": [\n  {lines}\n]}}\n' if found else '{"entries": []}\n', encoding="utf-8")
