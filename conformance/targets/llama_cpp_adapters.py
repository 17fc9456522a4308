"""llama.cpp's converter: `LLAMA_CPP=path/to/llama.cpp loraspec adapters conformance.targets.llama_cpp_adapters`.

`LLAMA_CPP` is a checkout with `convert_lora_to_gguf.py`, which is run as its command line does, in float32. The update
is what llama.cpp makes of the file, after the checks of `src/llama-adapter.cpp`: alpha divided by the rank of each
lora_b, and the rows of q and k in its own order.
"""

from __future__ import annotations

import logging
import os
import re
import runpy
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from conformance.targets.wrapped_layer import library, version_of

SCRIPT = "convert_lora_to_gguf.py"
CHECKOUT = Path(os.environ.get("LLAMA_CPP", ""))
if not os.environ.get("LLAMA_CPP") or not (CHECKOUT / SCRIPT).is_file():
    raise ModuleNotFoundError(
        f"LLAMA_CPP is {os.environ.get('LLAMA_CPP', '')!r}: expected a checkout of llama.cpp, with {SCRIPT}",
        name=SCRIPT,
    )
sys.path.insert(0, str(CHECKOUT / "gguf-py"))  # the script needs the package of its own checkout
for _name in [name for name in sys.modules if name.partition(".")[0] == "gguf"]:
    del sys.modules[_name]
with library("gguf", "llama.cpp's checkout", "pip install gguf"):
    import gguf
sys.path.remove(str(CHECKOUT / "gguf-py"))

_ABOUT = CHECKOUT / "gguf-py" / "pyproject.toml"
_VERSION = re.search(r'^version = "(.*)"', _ABOUT.read_text("utf-8") if _ABOUT.is_file() else "", re.MULTILINE)
CONFORMANCE: dict[str, Any] = {
    "name": "llama.cpp convert_lora_to_gguf",
    "version": f"gguf-py {_VERSION[1] if _VERSION else version_of('gguf')}",
}
ARCHITECTURES = {"llama": gguf.MODEL_ARCH.LLAMA, "mixtral": gguf.MODEL_ARCH.LLAMA, "gpt2": gguf.MODEL_ARCH.GPT2}


def load_adapter_deltas(model: Any, path: str) -> dict[str, Tensor]:
    """alpha/r·B A of each tensor that llama.cpp's file has."""
    with tempfile.TemporaryDirectory() as folder:
        model.config.save_pretrained(folder)
        file = Path(folder) / "adapter.gguf"
        _convert("--base", folder, "--outtype", "f32", "--outfile", str(file), path)
        reader = gguf.GGUFReader(file)
        alpha = float(reader.fields["adapter.lora.alpha"].parts[-1][0])
        tensors = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}
        del reader
    parameters = _parameters(model)
    found: dict[str, Tensor] = {}
    for name in [name.removesuffix(".lora_b") for name in tensors if name.endswith(".lora_b")]:
        A, B = tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"]
        parameter = parameters.get(name)
        if parameter is None:
            raise ValueError(f"LoRA tensor '{name}' does not exist in base model (hint: maybe wrong base model?)")
        A = A.T if name == "token_embd.weight" else A
        update = _as_in(model, parameter, (alpha / B.shape[-1] if alpha else 1.0) * (B @ A))
        if update.shape != model.get_parameter(parameter).shape:
            raise ValueError(f"tensor '{name}' has incorrect shape (hint: maybe wrong base model?)")
        found[parameter] = update
    return found


def _convert(*arguments: str) -> None:
    """Run the script.

    Raises:
        RuntimeError: if it ends with an exit code, with the errors that it has logged.
    """
    with _logged_errors() as errors:
        before = sys.argv, list(sys.path)
        sys.argv = [SCRIPT, *arguments]
        sys.path.insert(0, str(CHECKOUT))
        try:
            runpy.run_path(str(CHECKOUT / SCRIPT), run_name="__main__")
        except SystemExit as end:
            raise RuntimeError(f"{SCRIPT} ended with {end.code}: {'; '.join(errors)}") from end
        finally:
            sys.argv, sys.path[:] = before


@contextmanager
def _logged_errors() -> Iterator[list[str]]:
    """The messages of errors that are logged meanwhile; nothing of it is printed."""
    errors: list[str] = []
    root, handler = logging.getLogger(), logging.Handler(logging.ERROR)
    handler.emit = lambda record: errors.append(record.getMessage())  # type: ignore[method-assign]
    before, level = root.handlers[:], root.level
    root.handlers = [handler]
    try:
        yield errors
    finally:
        root.handlers = before
        root.setLevel(level)


def _parameters(model: Any) -> dict[str, str]:
    """By the name of a tensor in llama.cpp the parameter of the model; a tied head has no tensor of its own."""
    config = model.config
    names = gguf.get_tensor_name_map(ARCHITECTURES[config.model_type], config.num_hidden_layers)
    return {names.get_name(name, (".weight", ".bias")) or name: name for name, _ in model.named_parameters()}


def _as_in(model: Any, parameter: str, update: Tensor) -> Tensor:
    """An update as the model has its weight: without the order of q's and k's rows that llama.cpp's rotation needs."""
    module = parameter.rpartition(".")[0]
    if type(model.get_submodule(module)).__name__ in ("Conv1D", "Embedding"):
        return update.T
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(module.rpartition(".")[2])
    if heads is None:
        return update
    each = update.reshape(getattr(model.config, heads), -1, 2, update.shape[1])
    return each.swapaxes(1, 2).reshape(update.shape)
