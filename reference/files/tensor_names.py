"""The names of the tensors in a file of PEFT: those of adapters, and explanations of all others."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from .tensor_file import DTYPES

PREFIX = "base_model.model."  # before the name of each module in a file of PEFT
PARTS = {"lora_A.weight": "lora_A.weight", "lora_B.weight": "lora_B.weight", "lora_magnitude": "lora_magnitude_vector"}
"""The parameters of a layer, and their names in a file of PEFT."""

_ADAPTER_NAME = re.compile(r"\.(lora_A|lora_B|lora_magnitude_vector)\.[^.]+(\.weight)?$")


@dataclass
class NamedTensors:
    """The tensors of a file.

    Attributes:
        adapters: the adapters' tensors, by module and parameter.
        copies: tensors that PEFT copied from the base model, by the parameter's name in the model.
    """

    adapters: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    copies: dict[str, Tensor] = field(default_factory=dict)


def by_module(tensors: Mapping[str, Tensor], parameters: Collection[str], file: str) -> NamedTensors:
    """Sort the tensors of a file by module.

    Args:
        parameters: the names of the model's parameters and buffers.   file: the file's name, for errors.
    Raises:
        ValueError: for a name or a dtype that an adapter of a linear layer cannot have, saying what the tensor is.
    """
    found = NamedTensors()
    for key, tensor in sorted(tensors.items()):
        part = next((part for part, theirs in PARTS.items() if key.endswith(f".{theirs}")), None)
        if part is None or not key.startswith(PREFIX):
            copied = key.removeprefix(PREFIX).replace(".base_layer.", ".")
            if not key.startswith(PREFIX) or copied not in parameters:
                raise ValueError(f"unexpected tensor {key}: {_explained(key, part is not None)}")
            found.copies[copied] = tensor
            continue
        if tensor.dtype not in DTYPES:
            raise ValueError(f"{key} is {tensor.dtype}: expected one of {', '.join(map(str, DTYPES))}")
        found.adapters.setdefault(key.removeprefix(PREFIX).removesuffix(f".{PARTS[part]}"), {})[part] = tensor
    if not found.adapters:
        raise ValueError(f"{file} holds no tensor of an adapter: expected {PREFIX}<module>.lora_A.weight and the like")
    return found


def prefix_hint(unknown: Collection[str], modules: Collection[str]) -> str:
    """An explanation if the model has the modules under longer or shorter names, else an empty string.

    Args:
        unknown: names in a file that the model lacks.   modules: the names of the model's modules.
    """
    first = min(unknown)
    for name in sorted(modules, key=len):
        if name.endswith(f".{first}"):
            inner = name.removesuffix(first)
            if all(inner + other in modules for other in unknown):
                part = inner.removesuffix(".")
                return f": the file's names lack the prefix {inner} of this model; load it into model.{part}"
        if name and first.endswith(f".{name}"):
            outer = first.removesuffix(name)
            if all(other.startswith(outer) and other.removeprefix(outer) in modules for other in unknown):
                return (
                    f": the file's names have the prefix {outer}, which this model's lack; load it into the whole model"
                )
    return ""


def _explained(key: str, is_part: bool) -> str:
    """A description of a tensor that is no adapter's."""
    if ".lora_embedding_" in key:
        return "it belongs to the adapter of an embedding, which is not supported"
    if key.endswith(".lora_B.bias"):
        return "it is the bias of an adapter (lora_bias), which is not supported"
    if ".modules_to_save." in key or ".trainable_tokens_" in key:
        return "it belongs to modules_to_save or trainable_token_indices, which are not supported"
    named = None if is_part else _ADAPTER_NAME.search(key)
    if named:
        return f"it has the name of an adapter after {named[1]}, which PEFT's save_pretrained leaves out"
    if not key.startswith(PREFIX):
        return f"it lacks PEFT's prefix: expected {PREFIX}{_unprefixed(key)}" if is_part else _expected()
    return f"{_expected()}; or, if PEFT copied it from the base model, the name of a parameter of this model"


def _unprefixed(key: str) -> str:
    for prefix in ("base_model.model.", "base_model."):
        key = key.removeprefix(prefix)
    return key


def _expected() -> str:
    return f"expected {PREFIX}<module>. followed by one of {', '.join(PARTS.values())}"
