"""The storage of a packed base at one time: its bytes, dtypes and shapes, and the comparison with a later time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from conformance.clauses.quantised.packed_operands import decoded
from conformance.judgement.outcomes import require
from conformance.numerics.formats import Array
from conformance.target.calls import calling
from conformance.target.subject import Subject

LAYERS = ("packed_linear",)  # the subject that is a layer


@dataclass(frozen=True)
class Storage:
    """What a layer's packed base stores.

    Attributes:
        tensors: by name the fields, where the target has `packed_fields`, and the layer's own parameters and buffers
            outside adapter and bias.
        numbers: Ŵ, decoded from the fields or dequantised by the target.
    """

    tensors: dict[str, torch.Tensor]
    numbers: Array


def stored_in(subject: Subject, layer: Any, shape: tuple[int, int]) -> Storage:
    """The storage of a layer, copied."""
    numbers, stored = decoded(subject.target, layer, shape)
    found = {f"field {name}": tensor for name, tensor in stored.fields.items()} if stored else {}
    return Storage({name: t.detach().clone() for name, t in {**found, **own_tensors(layer)}.items()}, numbers)


def own_tensors(layer: Any) -> dict[str, torch.Tensor]:
    """The parameters and buffers of a layer outside adapter and bias, but no tensors that dequantise themselves."""
    held = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
    plain = {name: t for name, t in held.items() if type(t).dequantize is torch.Tensor.dequantize}
    return {name: t for name, t in plain.items() if "lora_" not in name and name.split(".")[-1] != "bias"}


def require_kept(subject: Subject, before: Storage, layer: Any, what: str) -> None:
    """Require that a layer stores the same bytes as before; where it may repack itself, the same numbers."""
    now = stored_in(subject, layer, before.numbers.shape)
    wrong = now.numbers != before.numbers
    said = f"{int(wrong.sum())} of {wrong.size} numbers that the storage stands for"
    if subject.follows("packed_storage", "repacked"):
        require(not wrong.any(), f"{what} changed {said}")
        return
    for name, old in before.tensors.items():
        new = now.tensors.get(name)
        require(new is not None, f"{what} took {name} out of the storage")
        assert new is not None
        was, became = f"{old.dtype} {list(old.shape)}", f"{new.dtype} {list(new.shape)}"
        require(was == became, f"{what} made {name} {became}: it was {was}")
        changed = int(np.count_nonzero(bytes_of(new) != bytes_of(old)))
        require(changed == 0, f"{what} changed {changed} of {old.nbytes} bytes of {name}")
    require(not wrong.any(), f"{what} changed {said}")


def require_frozen(subject: Subject, layer: Any, what: str) -> None:
    """Require that no packed field requires grad."""
    fields: dict[str, Any] = {}
    if hasattr(subject.target, "packed_fields"):
        with calling("packed_fields(layer)"):
            fields = dict(subject.target.packed_fields(layer)["fields"])
    for name, tensor in {**fields, **own_tensors(layer)}.items():
        require(not tensor.requires_grad, f"{what}, {name} of the storage requires grad: expected it frozen")


def bytes_of(tensor: torch.Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The bytes of a tensor."""
    found: np.ndarray[Any, np.dtype[np.uint8]] = (
        tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    )
    return found
