"""How a golden adapter is made: the tensors of its file, and the exact change of each parameter with an error budget.

The formulas are those of PEFT's documentation, in NumPy and float64; no code of a loader is used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from conformance.adapters.base_models import dyadic, values_of
from conformance.numerics.budget import Rounding, merged_weight
from conformance.numerics.formats import Array, dtype_named, format_of

PREFIX = "base_model.model."
UNIT = format_of(torch.float32).unit  # of the base models


@dataclass(frozen=True)
class Update:
    """The adapter of one module or of one parameter of experts.

    Attributes:
        key: its name in the file, after the prefix.   parameter: the parameter that it changes.
        shape: the shape of that parameter.   rank, alpha: those that hold for it, patterns applied.
        kind: `linear`, `conv1d` (its weight is [in, out]), `embedding` or `experts` ([experts, out, in]).
    """

    key: str
    parameter: str
    shape: tuple[int, ...]
    rank: int
    alpha: float
    kind: str = "linear"


@dataclass(frozen=True)
class GoldenAdapter:
    """One golden adapter.

    Attributes:
        name: its folder.   base: its base model.   shows: what a loader must respect.
        words: one of them stands in a clear error of a loader that does not take it; empty if it must be taken.
        config: the fields of its `adapter_config.json` beside the common ones.   updates: what it changes.
        dtype: that of its file.   prefix: what begins the names of its tensors.
        copies: parameters that the file replaces as a whole, with their shapes (modules_to_save, trained biases).
    """

    name: str
    base: str
    shows: str
    config: Mapping[str, Any]
    updates: tuple[Update, ...]
    words: tuple[str, ...] = ()
    dtype: str = "float32"
    prefix: str = PREFIX
    copies: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Change:
    """The exact change of a parameter, and the largest error of each element that roundings explain."""

    value: Array
    budget: Array


def configuration(adapter: GoldenAdapter) -> dict[str, Any]:
    """The contents of `adapter_config.json`."""
    common = {
        "base_model_name_or_path": None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "peft_version": "0.21.2",
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
    return dict(sorted((common | dict(adapter.config)).items()))


def contents(adapter: GoldenAdapter) -> tuple[dict[str, Array], dict[str, Change]]:
    """The tensors of the file by name, and by parameter its exact change; other parameters do not change."""
    tensors: dict[str, Array] = {}
    changes: dict[str, Change] = {}
    for update in adapter.updates:
        made, changed = _of_update(adapter, update)
        tensors |= {f"{adapter.prefix}{key}": value for key, value in made.items()}
        changes |= changed
    for parameter, shape in adapter.copies.items():
        new = dyadic(f"{adapter.name} {parameter}", shape, 8)
        change = new - values_of(adapter.base, parameter, shape)
        tensors[f"{adapter.prefix}{_name_of_copy(adapter, parameter)}"] = new
        changes[parameter] = Change(change, read_budget(change))
    return dict(sorted(tensors.items())), dict(sorted(changes.items()))


def read_budget(change: Array) -> Array:
    """The error of a change read from the outputs of a layer, whose sums of weight and bias are at most 3 + |ΔW|."""
    return np.asarray(2 * UNIT * (3 + np.abs(change)))


def scale_of(adapter: GoldenAdapter, update: Update) -> float:
    """The factor of an update: alpha/r, or alpha/√r with rsLoRA."""
    return update.alpha / (math.sqrt(update.rank) if adapter.config.get("use_rslora") else update.rank)


def _name_of_copy(adapter: GoldenAdapter, parameter: str) -> str:
    """The name of a replaced parameter in the file: PEFT names a trained bias by the wrapped layer."""
    module, _, last = parameter.rpartition(".")
    adapted = any(update.parameter == f"{module}.weight" for update in adapter.updates)
    return f"{module}.base_layer.{last}" if adapted else parameter


def _of_update(adapter: GoldenAdapter, update: Update) -> tuple[dict[str, Array], dict[str, Change]]:
    if update.kind == "experts":
        return _of_experts(adapter, update)
    turned = update.kind in ("conv1d", "embedding")
    weight = values_of(adapter.base, update.parameter, update.shape)
    weight = weight.T if turned else weight  # [out, in]
    N, K = weight.shape
    seed = f"{adapter.name} {update.key}"
    A, B = dyadic(f"{seed} A", (update.rank, K), 8), dyadic(f"{seed} B", (N, update.rank), 8)
    scale = scale_of(adapter, update)
    names = (
        ("lora_embedding_A", "lora_embedding_B") if update.kind == "embedding" else ("lora_A.weight", "lora_B.weight")
    )
    tensors = dict(zip((f"{update.key}.{name}" for name in names), (A, B), strict=True))
    change = _linear_change(weight, A, B, scale, dtype_named(adapter.dtype))
    if adapter.config.get("use_dora"):
        magnitude = 1 + np.abs(dyadic(f"{seed} magnitude", (N,), 8))
        tensors[f"{update.key}.lora_magnitude_vector"] = magnitude
        change = _dora_change(weight, change, magnitude)
    changes = {update.parameter: Change(change.value.T, change.budget.T) if turned else change}
    if adapter.config.get("lora_bias"):
        bias = dyadic(f"{seed} bias", (N,), 8)
        tensors[f"{update.key}.lora_B.bias"] = bias
        parameter = f"{update.parameter.removesuffix('weight')}bias"
        changes[parameter] = Change(scale * bias, read_budget(scale * bias))
    return tensors, changes


def _linear_change(weight: Array, A: Array, B: Array, scale: float, dtype: torch.dtype) -> Change:
    """The change scale·B A; a loader may compute it in the dtype of the file, and then merge it into the weight."""
    value = scale * (B @ A)
    base = torch.float32
    in_file = merged_weight(np.zeros_like(weight), A, B, scale, Rounding(dtype, dtype))
    merged = merged_weight(weight, A, B, scale, Rounding(base, base))
    return Change(value, in_file + merged + read_budget(value))


def _dora_change(weight: Array, update: Change, magnitude: Array) -> Change:
    """The change m ⊙ V/‖V‖ − W with V = W + scale·B A.

    An error of V reaches the row directly and through its norm, by at most twice its length relative to the norm's.
    """
    adapted = weight + update.value
    norm = np.linalg.norm(adapted, axis=1, keepdims=True)
    factor = magnitude[:, None] / norm
    relative = np.linalg.norm(update.budget, axis=1, keepdims=True) / norm + (weight.shape[1] + 4) * UNIT
    value = adapted * factor
    budget = factor * update.budget + np.abs(value) * relative + read_budget(value)
    return Change(value - weight, budget)


def _of_experts(adapter: GoldenAdapter, update: Update) -> tuple[dict[str, Array], dict[str, Change]]:
    """PEFT's layout: A [r·E, in] has expert by expert, B [out, r·E] has rank by rank."""
    experts, N, K = update.shape
    seed = f"{adapter.name} {update.key} {update.parameter}"
    A = dyadic(f"{seed} A", (experts, update.rank, K), 8)
    B = dyadic(f"{seed} B", (experts, N, update.rank), 8)
    weight = values_of(adapter.base, update.parameter, update.shape)
    scale, dtype = scale_of(adapter, update), dtype_named(adapter.dtype)
    each = [_linear_change(w, a, b, scale, dtype) for w, a, b in zip(weight, A, B, strict=True)]
    change = Change(np.stack([one.value for one in each]), np.stack([one.budget for one in each]))
    tensors = {
        f"{update.key}.lora_A.weight": A.reshape(-1, K),
        f"{update.key}.lora_B.weight": B.transpose(1, 2, 0).reshape(N, -1),
    }
    return tensors, {update.parameter: change}
