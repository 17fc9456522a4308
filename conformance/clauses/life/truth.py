"""The truth about a layer in the middle of its life: exact values of its tensors, and the results they give."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass, field

import numpy as np
import torch

from conformance.cases.operands import Operands
from conformance.judgement.given_operands import GivenCase
from conformance.judgement.linear_oracle import Expected, LinearOracle
from conformance.numerics import budget
from conformance.numerics.budget import Rounding
from conformance.numerics.formats import Array, format_of, rounded

LOW = torch.bfloat16  # the dtype of autocast regions


@dataclass
class Merge:
    """A merge: the adapter that was merged, and how far the merged weight may be from its exact value.

    Attributes:
        dtypes: those that the weight has had since.
        later: changed adapters that a further merge has merged, if the change had unmerged the layer.
    """

    lora_A: Array
    lora_B: Array
    scale: float
    allowed: Array
    dtypes: tuple[torch.dtype, ...]
    later: list[tuple[Array, Array, float]] = field(default_factory=list)

    @property
    def adapters(self) -> list[tuple[Array, Array, float]]:
        """The adapters that the weight may hold."""
        return [(self.lora_A, self.lora_B, self.scale), *self.later]


@dataclass
class Truth:
    """The exact state of a layer.

    Attributes:
        values: weight, bias if there is one, lora_A and lora_B, as float64.
        vanishing: whether dropout has p = 1, so that in training the adapter has no effect.
        keeps_dtype: whether y has the dtype of the layer, which x has too, also under autocast.
        trainable: which of x, bias, lora_A and lora_B require grad.
        merged: None, or what was merged.
        sign: -1 while a hook negates the output.   factor: of a parametrised weight.
    """

    values: dict[str, Array]
    scale: float
    dtype: torch.dtype
    adapter_dtype: torch.dtype
    training: bool = True
    vanishing: bool = False
    keeps_dtype: bool = False
    trainable: set[str] = field(default_factory=lambda: {"x", "lora_A", "lora_B"})
    merged: Merge | None = None
    sign: float = 1.0
    factor: float = 1.0

    def dtype_of(self, name: str) -> torch.dtype:
        """The dtype of a tensor."""
        return self.adapter_dtype if name.startswith("lora_") else self.dtype

    def copy(self) -> Truth:
        """A copy that later changes do not reach."""
        return copy.deepcopy(self)

    @property
    def weight(self) -> Array:
        """The base weight that the layer computes with, without the update."""
        return self.values["weight"] * self.factor

    @property
    def trained(self) -> set[str]:
        """The tensors that get a gradient: not the adapter while it is merged, or while dropout removes it."""
        without = self.merged is not None or (self.training and self.vanishing)
        return self.trainable - ({"lora_A", "lora_B"} if without else set())

    def merge(self) -> None:
        """Merge the update into the weight; of a merged layer whose adapter has changed, perhaps the present one."""
        down, up = self.values["lora_A"], self.values["lora_B"]
        how = Rounding(self.dtype, self.adapter_dtype)
        allowed = budget.merged_weight(self.weight, down, up, self.scale, how)
        if self.merged is None:
            self.merged = Merge(down, up, self.scale, allowed, (self.dtype, self.adapter_dtype))
        elif not _same(self.merged.adapters[-1], (down, up, self.scale)):
            self.merged.later.append((down, up, self.scale))
            self.merged.allowed = np.maximum(self.merged.allowed, allowed)

    def convert(self, dtype: torch.dtype) -> None:
        """Round every tensor to another dtype."""
        if self.merged is not None:
            update = self.merged.scale * (self.merged.lora_B @ self.merged.lora_A)
            self.merged.dtypes += (dtype,)
            allowed = budget.unmerged_weight(self.weight, update, self.merged.scale, dtype)
            self.merged.allowed = self.merged.allowed + allowed
        self.values = {name: rounded(value, dtype) for name, value in self.values.items()}
        self.dtype = self.adapter_dtype = dtype

    def unmerged_allowance(self) -> Array:
        """The allowed error of a weight that unmerging restores."""
        merged = self.merged
        assert merged is not None
        adapters = [(scale * (up @ down), scale) for down, up, scale in merged.adapters]
        allowed = [budget.unmerged_weight(self.values["weight"], *adapter, *merged.dtypes) for adapter in adapters]
        return np.asarray(np.maximum.reduce(allowed))

    def results(self, x: Array, g: Array, *, autocast: bool) -> list[Results]:
        """The results that are right for these x and g; several if the adapter has changed since it was merged."""
        merged = self.merged
        if merged is None:
            vanished = self.training and self.vanishing
            scale, dropped = (0.0, self.scale) if vanished else (self.scale, 0.0)
            return [Results(self, x, g, autocast, self.values["lora_A"], self.values["lora_B"], scale, dropped)]
        candidates = [Results(self, x, g, autocast, *adapter) for adapter in merged.adapters]
        down, up = self.values["lora_A"], self.values["lora_B"]
        if merged.later or not _same(merged.adapters[0], (down, up, self.scale)):
            # merged anew, or unmerged, where dropout takes all of it
            scales = (self.scale, 0.0) if self.training and self.vanishing else (self.scale,)
            candidates += [Results(self, x, g, autocast, down, up, scale) for scale in scales]
        return candidates


def _same(one: tuple[Array, Array, float], other: tuple[Array, Array, float]) -> bool:
    """Whether two adapters are equal."""
    return one[2] == other[2] and np.array_equal(one[0], other[0]) and np.array_equal(one[1], other[1])


class LifeOperands(Operands):
    """The operands of one call in the middle of a life."""

    def __init__(
        self, values: dict[str, Array], scale: float, dtypes: tuple[torch.dtype, torch.dtype], *, autocast: bool
    ) -> None:
        self.scale, (self.dtype, self.adapter_dtype) = scale, dtypes
        self.computed_in, self.device = LOW if autocast else self.dtype, "cpu"
        self.values = {name: rounded(v, LOW) for name, v in values.items()} if autocast else values
        tokens = values["x"].shape[:-1]
        (rank, width), rows = values["lora_A"].shape, len(values["lora_B"])
        self.shape = (*tokens, rows)
        self.case = GivenCase(
            m=int(np.prod(tokens)),
            k=width,
            n=rows,
            r=rank,
            scale=scale,
            values="normal",
            autocast=str(LOW) if autocast else "off",
            tokens=tokens,
        )


class Results:
    """The expected results of one call: y, and the gradients dX, dA, dB and dbias.

    Args:
        dropped: the scale of an update that dropout removes.
    """

    def __init__(
        self,
        truth: Truth,
        x: Array,
        g: Array,
        autocast: bool,
        down: Array,
        up: Array,
        scale: float,
        dropped: float = 0.0,
    ) -> None:
        self.truth, self.autocast = truth, autocast
        values = {**truth.values, "weight": truth.weight, "lora_A": down, "lora_B": up, "x": x, "g": g}
        operands = LifeOperands(values, scale, (truth.dtype, truth.adapter_dtype), autocast=autocast)
        self.oracle = LinearOracle(operands)
        self.x, self.g = np.abs(operands.rows("x")), np.abs(operands.rows("g"))
        self.weight, self.down, self.up = (np.abs(values[name]) for name in ("weight", "lora_A", "lora_B"))
        self.bias = np.abs(values["bias"]) if "bias" in values else np.zeros(len(self.up))
        self.scale, self.dropped = abs(scale), dropped

    def of(self, name: str) -> Expected:
        """The expected y, or the gradient of x, lora_A, lora_B or bias."""
        expected = self.oracle.y if name == "y" else self.oracle.gradient(name)
        slack = self._slack(name)
        allowed = None if expected.budget is None else expected.budget + slack.reshape(expected.value.shape)
        terms = {term: value * self.truth.sign for term, value in expected.terms.items()}
        value = expected.value * self.truth.sign
        mistakes = {}
        if self.dropped and name in ("y", "x"):
            rows, first, second = (self.oracle.x, self.oracle.down.T, self.oracle.up.T)
            if name == "x":
                rows, first, second = (self.oracle.g, self.oracle.up, self.oracle.down)
            update = self.truth.sign * self.dropped * (rows @ first) @ second
            mistakes["dropout had not acted"] = value + update.reshape(value.shape)
        dtype = self.truth.dtype if name == "y" and self.truth.keeps_dtype else expected.dtype
        return dataclasses.replace(expected, value=value, budget=allowed, dtype=dtype, terms=terms, mistakes=mistakes)

    def _slack(self, name: str) -> Array:
        """What the budget adds: the error of a merged weight, and autocast's casts, which a target may leave out."""
        unit = 4 * format_of(LOW).unit if self.autocast else 0.0
        merged = 0.0 if self.truth.merged is None else self.truth.merged.allowed
        s, base = self.scale, unit * self.weight + merged
        if name == "y":
            return np.asarray(self.x @ base.T + unit * (s * (self.x @ self.down.T) @ self.up.T + self.bias))
        if name == "x":
            return np.asarray(self.g @ base + unit * s * (self.g @ self.up) @ self.down)
        if name == "lora_A":
            return np.asarray(unit * s * (self.g @ self.up).T @ self.x)
        if name == "lora_B":
            return np.asarray(unit * s * self.g.T @ (self.x @ self.down.T))
        return np.asarray(unit * self.g.sum(0))
