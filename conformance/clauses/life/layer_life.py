"""The life of one layer: code that runs on the target, the truth beside it, and the comparison of the two."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from conformance.clauses.life.life_case import LifeCase
from conformance.clauses.life.lived import Lived
from conformance.clauses.life.situation import Operation, Situation
from conformance.clauses.life.truth import LOW, Results, Truth
from conformance.judgement.linear_oracle import Expected
from conformance.numerics.formats import Array, dtype_named, rounded
from conformance.specification.features import ABSENT
from conformance.target.adapter_tensors import adapter_of, names_in_state
from conformance.target.calls import calling
from conformance.target.signature import arguments_for, takes
from conformance.target.subject import Subject

TENSORS = ("weight", "bias", "lora_A", "lora_B")
BUILD = '''
def build(dtype, adapter_dtype):
    """A layer of the target over a new linear layer."""
    base = nn.Linear({k}, {n}, bias={bias}, dtype=dtype)
    return target.{name}(base, {arguments})


def held(layer, name):
    """The tensor of a layer that has this name."""
    if not hasattr(layer, name):
        layer = layer.base_layer
    found = getattr(layer, name)
    return found.weight if isinstance(found, nn.Module) else found


def negated(module, inputs, output):
    """The negated output, as a forward hook."""
    return -output


class Doubled(nn.Module):
    """The parametrisation W = 2 V."""

    def forward(self, original):
        return 2 * original
'''


def negated(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:  # noqa: ARG001
    """The negated output, as a forward hook that can be pickled."""
    return -output


class Doubled(nn.Module):
    """The parametrisation W = 2 V."""

    def forward(self, original: torch.Tensor) -> torch.Tensor:
        """Twice the tensor."""
        return 2 * original


@dataclass
class Pending:
    """A forward pass whose backward pass is still to come: its x and g, and the truth at that time."""

    x: Array
    g: Array
    truth: Truth
    autocast: bool


class Life(Lived):
    """One layer and the truth about it.

    Attributes:
        truth: the exact state of the layer.
        pending: a forward pass that waits for its backward pass.
        named: by key of the state_dict the name of the layer's tensor, as a new layer shows it.
    """

    def __init__(self, subject: Subject, case: LifeCase, start: Situation) -> None:
        super().__init__(subject, case, start)
        self.pending: Pending | None = None
        self._draws = 0
        self._keys: list[str] | None = None
        self.named: dict[str, str] = {}
        names = {"nn": nn, "copy": copy, "pickle": pickle, "ThreadPoolExecutor": ThreadPoolExecutor}
        functions = {f.__name__: f for f in (checkpoint, create_selective_checkpoint_contexts)}
        self.begin(self._build_text(), **names, **functions, parametrize=parametrize)
        self.names.update(held=self._held, negated=negated, Doubled=Doubled, optimiser=None, regions=[])
        self._begin()

    def _build_text(self) -> str:
        case, thing = self.case, self.subject.thing
        alpha = case.scale * case.r
        wanted: dict[str, Any] = {"dim": case.r, "alpha": int(alpha) if alpha == int(alpha) else alpha}
        if case.dropout and self._takes("dropout", "dropout") and self.subject.dropout_positions:
            wanted |= {"dropout": case.dropout, "dropout_position": self.subject.dropout_positions[0]}
        arguments = ", ".join(f"{name}={value!r}" for name, value in arguments_for(thing, wanted).items())
        rounded = self.subject.follows("adapter_dtype", "input dtype")  # the values of a life have the adapter's dtype
        self.mixed = case.adapter != "same" and not rounded and self._takes("lora_dtype", "adapter_dtype")
        if self.mixed:
            arguments += f", {takes(thing, 'lora_dtype')}=adapter_dtype"
        self.vanishing = "dropout" in wanted
        return BUILD.format(k=case.k, n=case.n, bias=case.bias, name=self.subject.name, arguments=arguments)

    def _takes(self, argument: str, feature: str) -> bool:
        """Whether the layer takes an argument, and the target does not declare that it lacks the feature."""
        return takes(self.subject.thing, argument) is not None and not self.subject.follows(feature, ABSENT)

    def _begin(self) -> None:
        case = self.case
        dtypes = dtype_named(case.dtype), dtype_named(case.adapter if self.mixed else case.dtype)
        keeps = self.subject.convention("autocast") in ("input dtype", "layer dtype")
        self.truth = Truth({}, case.scale, *dtypes, vanishing=self.vanishing, keeps_dtype=keeps)
        self.run("layer = build(dtype, adapter_dtype).train()", dtype=dtypes[0], adapter_dtype=dtypes[1])
        self.rebind()
        for name in TENSORS:
            if name != "bias" or case.bias:
                self.fill(name)

    @property
    def autocast(self) -> bool:
        """Whether a call now computes in the dtype of autocast, which leaves float64 alone."""
        return self.now.autocast and self.truth.dtype != torch.float64

    @property
    def layer(self) -> Any:
        """The layer at present."""
        return self.names["layer"]

    def _held(self, layer: Any, name: str) -> Any:
        """The tensor of a layer that has this name; None for an absent bias."""
        if name.startswith("lora_"):
            return adapter_of(layer, name)
        if hasattr(layer, name):
            return getattr(layer, name)
        shape = (self.case.n, self.case.k) if name == "weight" else (self.case.n,)
        found = (t for n, t in layer.named_parameters() if n.endswith(name) and "lora" not in n and t.shape == shape)
        return next(found, None)

    def backward(self, y: str, g: str) -> None:
        """Run a backward pass, outside autocast, as torch advises."""
        outside = 'with torch.autocast("cpu", enabled=False):\n    ' if self.now.regions else ""
        self.run(f"{outside}{y}.backward({g})")

    def rebind(self, *names: str) -> None:
        """Take the tensors that the layer holds now as those that an optimiser or another module would hold."""
        bound = names or TENSORS
        self.run(", ".join(bound) + " = " + ", ".join(f'held(layer, "{name}")' for name in bound))
        self.names["optimiser"] = None

    def values(self, name: str) -> Array:
        """New values for a tensor of the layer, which its dtype represents."""
        case = self.case
        shape = {"weight": (case.n, case.k), "bias": (case.n,), "lora_A": (case.r, case.k), "lora_B": (case.n, case.r)}
        size = {"bias": 1.0, "lora_B": max(1.0, self.truth.scale) * case.r**0.5}.get(name, case.k**0.5)
        return rounded((self._normal(shape[name]) / size).round(3), self.truth.dtype_of(name))

    def _normal(self, shape: tuple[int, ...]) -> Array:
        """Normal values with three decimals, which a script can show in full."""
        self._draws += 1
        return np.random.default_rng([self.case.seed, self._draws]).standard_normal(shape).round(3)

    def tensor(self, name: str, values: Array) -> torch.Tensor:
        """Values as a tensor of the dtype that the named tensor has."""
        return torch.from_numpy(values.copy()).to(self.truth.dtype_of(name))

    def fill(self, name: str) -> None:
        """Write new values into a tensor of the layer, in place."""
        values = self.values(name)
        self.run(f"with torch.no_grad():\n    {name}.copy_(value)", value=self.tensor(name, values))
        self.truth.values[name] = values

    def inputs(self, *, autocast: bool, requires_grad: bool = False) -> tuple[Array, Array]:
        """Draw x and g, and bind their names."""
        tokens = (3,) if self._draws % 4 < 2 else (2, 2)
        x = rounded(self._normal((*tokens, self.case.k)), self.truth.dtype)
        g = rounded(self._normal((*tokens, self.case.n)), LOW if autocast else self.truth.dtype)
        upstream = torch.from_numpy(g.copy()).to(LOW if autocast else self.truth.dtype)
        self.names.update(x=self.tensor("x", x).requires_grad_(requires_grad), g=upstream)
        self.calls.lines.append(("", {"x": self.names["x"], "g": upstream}, self.judging))
        return x, g

    def new_keys(self) -> list[str]:
        """The keys of the state_dict of a new layer."""
        if self._keys is None:
            with calling("building"):
                new = eval("build(torch.float32, torch.float32)", self.names)
                state = new.state_dict()
            self._keys = sorted(state)
            self.named = names_in_state(state, {name: self._held(new, name) for name in TENSORS})
        return self._keys

    def act(self, operation: Operation) -> None:
        """Let one operation happen, if it is allowed here and the target has it."""
        super().act(operation)
        if not self.now.pending:
            self.pending = None

    def end(self) -> None:
        """Leave the autocast regions that are still open."""
        while self.names["regions"]:
            self.names["regions"].pop().__exit__(None, None, None)

    def expected(self, x: Array, g: Array, name: str, *, autocast: bool) -> list[Expected]:
        """The right results of this name; several if the adapter has changed since it was merged."""
        return [result.of(name) for result in self.truth.results(x, g, autocast=autocast)]

    def gradients(self, truth: Truth, results: Iterable[Results], prefix: str = "") -> None:
        """Compare the gradients of all tensors after a backward pass."""
        for name in ("x", "bias", "lora_A", "lora_B"):
            if name not in self.names or self.names[prefix + name] is None or (truth.merged and "lora" in name):
                continue
            gradient = f"{prefix}{name}.grad"
            if name not in truth.trainable:
                self.require(f"{gradient} is None", f"{name} got a gradient, although it does not require one")
            elif name.startswith("lora_") and truth.vanishing and truth.training:
                self.require(
                    f"{gradient} is None or not {gradient}.any()", f"{name} has a gradient at p = 1, where it is zero"
                )
            else:
                self.compare(gradient, *(result.of(name) for result in results))
