"""The files of a saved adapter in PEFT's layout, read and written here byte by byte, without safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from conformance.judgement.outcomes import Violation, require

CONFIG, TENSORS, REST = "adapter_config.json", "adapter_model.safetensors", "automodel_peft_config.json"
PREFIX = "base_model.model."
CODES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def written(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """The bytes of a safetensors file: the length of the JSON header, the header, and the values of each tensor."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    codes = {dtype: code for code, dtype in CODES.items()}
    # the format wants values aligned, so the widest dtypes come first
    for name in sorted(tensors, key=lambda name: (-tensors[name].element_size(), name)):
        tensor = tensors[name].detach().cpu().contiguous()
        values = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        offsets = [len(data), len(data) + len(values)]
        header[name] = {"dtype": codes[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        data += values
    return framed(json.dumps(header), data)


def framed(header: str, data: bytes) -> bytes:
    """The bytes of a file with this header and these values."""
    text = header.encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def tensors_in(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a saved adapter by name.

    Raises:
        Violation: if the file does not exist or is not a whole safetensors file.
    """
    data = contents(folder, TENSORS)
    try:
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        header.pop("__metadata__", None)
        return {name: _tensor(entry, data[8 + size :]) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise Violation(f"save_adapter: {TENSORS} is no safetensors file: {type(error).__name__}: {error}") from error


def _tensor(entry: dict[str, Any], data: bytes) -> torch.Tensor:
    start, stop = entry["data_offsets"]
    values = torch.frombuffer(bytearray(data[start:stop]), dtype=torch.uint8) if stop > start else torch.empty(0)
    return values.view(CODES[entry["dtype"]]).reshape(entry["shape"])


def config_in(folder: Path) -> dict[str, Any]:
    """The fields of a saved adapter's config."""
    try:
        values = json.loads(contents(folder, CONFIG))
    except ValueError as error:
        raise Violation(f"save_adapter: {CONFIG} is no JSON: {error}") from error
    require(isinstance(values, dict), f"save_adapter: {CONFIG} holds a {type(values).__name__}: expected an object")
    return values  # type: ignore[no-any-return]


def contents(folder: Path, name: str) -> bytes:
    """The bytes of a file, which must exist."""
    path = folder / name
    there = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    require(path.is_file(), f"save_adapter: {name} was not written: the folder holds {', '.join(there) or 'nothing'}")
    return path.read_bytes()


def peft_config(r: int, alpha: float, targets: list[str], **options: Any) -> dict[str, Any]:
    """The fields of a config as PEFT writes it."""
    return {
        "alpha_pattern": {},
        "auto_mapping": None,
        "base_model_name_or_path": "somewhere/a-model",
        "bias": "none",
        "exclude_modules": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_pattern": None,
        "layers_to_transform": None,
        "loftq_config": {},
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "peft_version": "0.21.2",
        "r": r,
        "rank_pattern": {},
        "revision": None,
        "target_modules": targets,
        "task_type": "FEATURE_EXTRACTION",
        "use_dora": False,
        "use_rslora": False,
        **options,
    }


def put(folder: Path, config: dict[str, Any], tensors: Mapping[str, torch.Tensor]) -> Path:
    """Write an adapter into a folder."""
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
    (folder / TENSORS).write_bytes(written(tensors))
    return folder
