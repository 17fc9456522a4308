"""The truth about a model in the middle of its life: that of each layer, the embedding, and what was saved."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import numpy as np
import torch

from conformance.clauses.life.model_chain import LAYERS, SETS
from conformance.clauses.life.truth import Results, Truth
from conformance.numerics.formats import Array, rounded

ADAPTER = ("lora_A", "lora_B", "lora_magnitude")  # the last in a DoRA adapter only


@dataclass
class ModelTruth:
    """The exact state of a model.

    Attributes:
        layers: the truth about each linear layer; one without an adapter has an update of zero.
        embedding: the embedding's weight as float64; the head has it too if `tied`.
        embedding_trains: whether the embedding requires grad.
        dtype: of the base weights.   adapters: the dtype of the adapters, by the sets of layers that have some.
        saved: the values of the adapters in the file, by tensor, and their dtypes by set.
    """

    layers: dict[str, Truth]
    embedding: Array
    dtype: torch.dtype
    tied: bool = False
    embedding_trains: bool = True
    adapters: dict[str, torch.dtype] = field(default_factory=dict)
    saved: dict[str, Array] = field(default_factory=dict)
    saved_dtypes: dict[str, torch.dtype] = field(default_factory=dict)

    @property
    def adapted(self) -> tuple[str, ...]:
        """The layers that have an adapter."""
        return tuple(name for name in LAYERS if any(name in SETS[chosen] for chosen in self.adapters))

    @property
    def training(self) -> bool:
        """Whether the model is in training mode."""
        return self.layers["head"].training

    def tensors(self) -> dict[str, Array]:
        """The value of each tensor; that of a merged weight without the update."""
        found, adapted = {"embed.weight": self.embedding}, self.adapted
        for name, truth in self.layers.items():
            parts = (part for part in truth.values if part not in ADAPTER or name in adapted)
            found |= {f"{name}.{part}": truth.values[part] for part in parts}
        return found

    def own_tensors(self) -> list[str]:
        """The names of the tensors without that of a tied head."""
        return [name for name in self.tensors() if not (self.tied and name == "head.weight")]

    def trainable(self) -> dict[str, bool]:
        """Whether each tensor requires grad."""
        found, adapted = {"embed.weight": self.embedding_trains}, self.adapted
        for name, truth in self.layers.items():
            parts = (part for part in truth.values if part not in ADAPTER or name in adapted)
            found |= {f"{name}.{part}": part in truth.trainable for part in parts}
        return found

    def dtype_of(self, name: str) -> torch.dtype:
        """The dtype of a tensor."""
        layer, _, part = name.partition(".")
        return self.dtype if layer == "embed" else self.layers[layer].dtype_of(part)

    def put(self, name: str, values: Array) -> None:
        """Set the value of a tensor, and of the one that is tied to it."""
        layer, _, part = name.partition(".")
        if name == "embed.weight" or (name == "head.weight" and self.tied):
            self.embedding = values
            if self.tied:
                self.layers["head"].values["weight"] = values
        else:
            self.layers[layer].values[part] = values

    def train_adapters_only(self) -> None:
        """Freeze all but the adapters."""
        self.train(base=False, adapters=True)

    def train(self, *, base: bool, adapters: bool) -> None:
        """Set whether the base and the adapters require grad."""
        self.embedding_trains = base
        for name, truth in self.layers.items():
            truth.trainable = {"x", *(("weight", "bias") if base else ())}
            if adapters and name in self.adapted:
                truth.trainable |= set(ADAPTER) & set(truth.values)

    def convert(self, dtype: torch.dtype) -> None:
        """Round every tensor to another dtype."""
        for truth in self.layers.values():
            truth.convert(dtype)
        self.dtype, self.adapters = dtype, dict.fromkeys(self.adapters, dtype)
        self.embedding = rounded(self.embedding, dtype)

    def copy(self) -> ModelTruth:
        """A copy that later changes do not reach."""
        return copy.deepcopy(self)

    def results(self, layer: str, x: Array, g: Array, *, autocast: bool = False) -> list[Results]:
        """The results of a layer that are right for these x and g."""
        return self.layers[layer].results(x, g, autocast=autocast)

    def words(self, tokens: Array) -> Array:
        """The embeddings of these tokens."""
        return np.asarray(self.embedding[tokens])
