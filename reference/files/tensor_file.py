"""Conversion of named tensors to the bytes of a safetensors file, and back; no code in a file is ever run."""

import hashlib
import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""The dtypes of an adapter's tensors."""

LARGEST_JSON = 2**24  # bytes; a config with a thousand module names has 2^16


def encode(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The bytes of a safetensors file; the order of tensors and metadata does not change them.

    Args:
        tensors: on any device, with any strides; they may share memory.   metadata: texts by name.
    """
    copies = {name: tensors[name].detach().cpu().clone(memory_format=torch.contiguous_format) for name in tensors}
    written: bytes = safetensors.torch.save(copies, dict(metadata))
    # The library sorts the tensors but not the metadata, whose order differs between processes.
    size = int.from_bytes(written[:8], "little")
    header = json.loads(written[8 : 8 + size])
    if "__metadata__" in header:
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + written[8 + size :]


def decode(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file.

    Raises:
        ValueError: if the file is truncated, longer than its header says, or not a safetensors file.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            # clones, because mapped memory would change with the file
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  (no mapping)
            return tensors, dict(file.metadata() or {})
    except SafetensorError as error:
        raise ValueError(f"{path.name} is not a whole safetensors file: {error}") from None


def digest(tensors: Mapping[str, Tensor], about: object) -> str:
    """SHA-256 of the tensors (names, dtypes, shapes, values) and of `about` as JSON, in hexadecimal."""
    total = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: if the file is not a JSON object, has a key twice, has NaN or Infinity, or is larger than
            `LARGEST_JSON`.
    """
    size = path.stat().st_size
    if size > LARGEST_JSON:
        raise ValueError(f"{path.name} has {size} bytes: expected at most {LARGEST_JSON}")
    try:
        values = json.loads(path.read_bytes(), object_pairs_hook=_once, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is not a JSON object: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path.name} is not a JSON object: it holds a {type(values).__name__}")
    return values


def write_json(values: Mapping[str, Any]) -> bytes:
    """The bytes of a JSON file; the order of keys does not change them."""
    return (json.dumps(values, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def file_in(folder: Path, name: str) -> Path:
    """The path of a regular file in a folder.

    A link may lead to another file of the folder or, from ``snapshots/<revision>`` of a Hugging Face cache and
    the folders in it, to the ``blobs`` beside ``snapshots``.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if it is not a regular file, or a link that leads elsewhere.
    """
    path, home = folder / name, folder.resolve()
    try:
        target = path.resolve(strict=True)
    except RuntimeError:  # a link that leads to itself
        raise ValueError(f"{path.name} leads nowhere") from None
    revision = next((inner for inner in (home, *home.parents) if inner.parent.name == "snapshots"), None)
    allowed = [home] if revision is None else [home, revision.parent.parent / "blobs"]
    if target.parent not in allowed:
        raise ValueError(f"{path.name} leads out of its folder, to {target}: expected a file in {folder}")
    if not stat.S_ISREG(target.stat().st_mode):
        raise ValueError(f"{path.name} is not a regular file")
    return target


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        twice = sorted({key for key, _ in pairs if sum(key == other for other, _ in pairs) > 1})
        raise ValueError(f"{', '.join(twice)} is given twice")
    return values


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is not a JSON number")
