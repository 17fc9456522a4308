"""The life of one model: its code, and the truth beside it."""

from __future__ import annotations

import copy
import pickle
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import reference
from conformance.clauses.life.life_case import LifeCase
from conformance.clauses.life.lived import Lived
from conformance.clauses.life.model_chain import LAYERS, SET_OF, SETS, WORDS, Chain, build_text, has_dropout, shapes
from conformance.clauses.life.model_situation import ModelSituation
from conformance.clauses.life.model_truth import ModelTruth
from conformance.clauses.life.truth import Truth
from conformance.isolation.memory_folder import in_memory
from conformance.numerics.formats import Array, dtype_named, numbers, rounded
from conformance.specification.features import SUPPORTED
from conformance.target.adapter_tensors import adapter_of, names_in_state
from conformance.target.calls import calling
from conformance.target.expected_errors import quiet
from conformance.target.subject import Subject

Shown = dict[str, torch.dtype]


@dataclass
class PendingModel:
    """A forward pass whose backward pass is still to come: the truth at that time."""

    truth: ModelTruth


class ModelLife(Lived):
    """One model and the truth about it; the names of its code are `model`, `tokens`, `outputs`, `kept` and so on.

    A life of another kind of model is a subclass.

    Attributes:
        parts: the names of an adapter's tensors.
        turned: the layers whose weight is stored as [in, out].
        named: by key of the state_dict the name of a layer's tensor, as new models show it.
        options: of the config, as code.   built_so: lines of code that change a new model before it is adapted.
        truth: the exact state of the model.
        pending: a forward pass that waits for its backward pass.
    """

    parts: tuple[str, ...] = ("lora_A", "lora_B")
    turned: tuple[str, ...] = ()
    options = built_so = ""

    def __init__(self, subject: Subject, case: LifeCase, start: ModelSituation) -> None:
        super().__init__(subject, case, start)
        self.pending: PendingModel | None = None
        self._draws = 0
        self._folders: list[str] = []
        self._keys: dict[tuple[str, ...], list[str]] = {}
        self.named: dict[str, str] = {}
        names: dict[str, Any] = {"nn": nn, "copy": copy, "pickle": pickle, "tempfile": tempfile, "reference": reference}
        names |= {"shutil": shutil, "Path": Path}
        self.begin(build_text(subject, case, self.options, self.built_so), **names)
        # the model's own class is one that can be pickled, and the helpers know more forms of layers
        self.names.update(Chain=Chain, tensors=self._tensors, base=self._base, new_folder=self._new_folder)
        self.names.update(optimiser=None)
        self._begin()

    def _begin(self) -> None:
        case = self.case
        dtype = dtype_named(case.dtype)
        sizes = shapes(case)
        layers = {}
        for layer in LAYERS:
            values = {part: np.zeros(sizes[f"{layer}.{part}"]) for part in self.parts}
            bare = {
                part: np.zeros(sizes[f"{layer}.{part}"]) for part in ("weight", "bias") if f"{layer}.{part}" in sizes
            }
            trainable = {"x", "weight", "bias"}
            layers[layer] = self.truth_of_layer({**bare, **values}, dtype, trainable)
        self.truth = ModelTruth(layers, np.zeros(sizes["embed.weight"]), dtype)
        self.run("model = build(base_dtype).train()", base_dtype=dtype)
        self.rebind()
        self.fill(*self.truth.tensors())

    def truth_of_layer(self, values: dict[str, Array], dtype: torch.dtype, trainable: set[str]) -> Truth:
        """The truth about a layer that has no adapter yet."""
        return Truth(values, 0.0, dtype, dtype, trainable=trainable)

    def run(self, code: str, **given: Any) -> None:
        with quiet():
            super().run(code, **given)

    @property
    def adapter_dtype(self) -> torch.dtype:
        """The dtype of the adapters that a config asks for."""
        case = self.case
        if case.adapter == "same" or self.subject.convention("adapter_dtype") != SUPPORTED:
            return self.truth.dtype
        return dtype_named(case.adapter)

    @property
    def vanishing(self) -> bool:
        """Whether dropout removes the update in training."""
        return has_dropout(self.subject, self.case)

    def _base(self, layer: Any) -> Any:
        """The module that holds the weight of a layer, adapted or not."""
        if "weight" in layer._parameters:
            return layer
        found = (m for n, m in layer.named_modules() if "lora_" not in n and "weight" in m._parameters)
        return next(found, layer)

    def _tensors(self, model: Any) -> dict[str, torch.Tensor]:
        """The tensors of a model, by the names of its layers and theirs."""
        found = {"embed.weight": model.embed.weight}
        for name in LAYERS:
            layer = model.get_submodule(name)
            held = self._base(layer)._parameters
            found |= {f"{name}.{part}": held[part] for part in ("weight", "bias") if held.get(part) is not None}
            if hasattr(layer, "lora_A"):
                found |= {f"{name}.{part}": adapter_of(layer, part) for part in self.parts}
        return found

    def _new_folder(self) -> str:
        """A temporary folder, which the end of the life removes."""
        self._folders.append(tempfile.mkdtemp(prefix="loraspec-", dir=in_memory()))
        return self._folders[-1]

    def end(self) -> None:
        """Remove the files."""
        while self._folders:
            shutil.rmtree(self._folders.pop(), ignore_errors=True)

    def rebind(self) -> None:
        """Take the tensors that the model holds now as those that an optimiser would hold."""
        self.run("kept = tensors(model)")
        self.names["optimiser"] = None

    def fill(self, *names: str, of: str = "kept") -> dict[str, Array]:
        """Write new values into tensors, in place; return them, and put them into the truth if they are the model's."""
        drawn = {name: self.values(name) for name in names}
        lines = ["with torch.no_grad():"]
        given = {}
        for name, values in drawn.items():
            short = name.replace(".", "_")
            stored = values.T if self.is_turned(name) else values
            given[short] = torch.from_numpy(stored.copy()).to(self.truth.dtype_of(name))
            lines.append(f'    {of}["{name}"].copy_({short})')
            if of == "kept":
                self.truth.put(name, values)
        self.run("\n".join(lines), **given)
        return drawn

    def is_turned(self, name: str) -> bool:
        """Whether a tensor is a weight that is stored as [in, out]."""
        layer, _, part = name.partition(".")
        return part == "weight" and layer in self.turned

    def matrix(self, text: str, name: str) -> str:
        """An expression for a tensor of this name, as one for its value as the truth has it."""
        return f"{text}.t()" if self.is_turned(name) else text

    def values(self, name: str) -> Array:
        """New values for a tensor of the model, which its dtype represents."""
        case, part = self.case, name.partition(".")[2]
        shape = shapes(case)[name]
        size = {"bias": 1.0, "lora_B": max(1.0, case.scale) * case.r**0.5}.get(part, shape[-1] ** 0.5)
        return rounded((self.normal(shape) / size).round(3), self.truth.dtype_of(name))

    def normal(self, shape: tuple[int, ...]) -> Array:
        """Normal values with three decimals, which a script can show in full."""
        self._draws += 1
        return np.random.default_rng([self.case.seed, self._draws]).standard_normal(shape).round(3)

    def inputs(self) -> None:
        """Draw tokens and g, and bind their names."""
        self._draws += 1
        shape = (3,) if self._draws % 2 else (2, 2)
        drawn = np.random.default_rng([self.case.seed, self._draws]).permutation(WORDS)[: int(np.prod(shape))]
        given = {
            "tokens": torch.from_numpy(drawn.reshape(shape)),
            "g": torch.from_numpy(self.normal((*shape, WORDS))).to(self.truth.dtype),
        }
        self.names.update(given)
        self.calls.lines.append(("", given, self.judging))

    def adapt(self, chosen: str, dtype: torch.dtype) -> None:
        """Let the truth have an adapter of zero in the layers of a set."""
        self.truth.adapters[chosen] = dtype
        for layer in SETS[chosen]:
            truth = self.truth.layers[layer]
            truth.scale, truth.adapter_dtype, truth.vanishing = self.case.scale, dtype, self.vanishing
            for part in self.parts:
                truth.values[part] = np.zeros(shapes(self.case)[f"{layer}.{part}"])
        self.truth.train_adapters_only()

    def built(self, dtype: torch.dtype, adapters: Shown) -> str:
        """The call that builds a model in which these sets are adapted in these dtypes."""
        return f"build({', '.join([str(dtype), *(f'{name}={kind}' for name, kind in adapters.items())])})"

    @property
    def like(self) -> str:
        """The call that builds a model that is adapted as this one is."""
        return self.built(self.truth.dtype, self.truth.adapters)

    def new_keys(self) -> list[str]:
        """The keys of the state_dict of a new model that is adapted as this one is."""
        sets = tuple(sorted(self.truth.adapters))
        if sets not in self._keys:
            with quiet(), calling(f"`{self.like}`"):
                new = eval(self.like, self.names)
                self._keys[sets] = sorted(new.state_dict())
                found = names_in_state(new.state_dict(), self.names["tensors"](new))
                self.named |= {key: name.rpartition(".")[2] for key, name in found.items()}
        return self._keys[sets]

    def arrays(self, name: str) -> list[Array]:
        """The values of a list of tensors."""
        return [numbers(t.detach()) for t in self.names[name]]

    def tensors_of(self, names: tuple[str, ...]) -> list[str]:
        """The adapters' tensors of sets of layers."""
        return [f"{layer}.{part}" for layer in LAYERS if SET_OF[layer] in names for part in self.parts]
