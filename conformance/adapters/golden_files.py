"""The folders of the golden adapters: `python -m conformance.adapters.golden_files` writes them anew, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save

from conformance.adapters.catalogue import GOLDEN
from conformance.adapters.recipe import GoldenAdapter, configuration, contents
from conformance.numerics.formats import dtype_named

FOLDER = Path(__file__).parent / "golden"
CHANGES = "expected_changes.safetensors"


def files(adapter: GoldenAdapter) -> dict[str, bytes]:
    """The files of an adapter's folder by name: PEFT's two, and the exact change of each parameter in float64."""
    tensors, changes = contents(adapter)
    dtype = dtype_named(adapter.dtype)
    saved = {name: torch.from_numpy(value.copy()).to(dtype) for name, value in tensors.items()}
    exact = {name: torch.from_numpy(change.value.copy()) for name, change in changes.items()}
    about = {"base": adapter.base}  # safetensors writes several keys in any order
    return {
        "adapter_config.json": (json.dumps(configuration(adapter), indent=2) + "\n").encode(),
        "adapter_model.safetensors": save(saved, {"format": "pt"}),
        CHANGES: save(exact, about),
    }


def write(folder: Path = FOLDER) -> None:
    """Write the folders of all golden adapters."""
    for adapter in GOLDEN:
        (folder / adapter.name).mkdir(parents=True, exist_ok=True)
        for name, content in files(adapter).items():
            (folder / adapter.name / name).write_bytes(content)


if __name__ == "__main__":
    write()
