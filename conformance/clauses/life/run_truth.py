"""The truth about a training run: a loop in NumPy float64 over a network whose gradients are written out."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from conformance.clauses.fhe.oracle import Product, Quantized, by_column, by_range, by_row, symmetric
from conformance.clauses.life.run_network import SCALE
from conformance.judgement.outcomes import Inconclusive
from conformance.numerics.formats import Array

ADAPTERS = ("inner.lora_A", "inner.lora_B", "outer.lora_A", "outer.lora_B")
N_BITS = 8
EPS, MOMENTUM = 1e-5, 0.1  # of BatchNorm1d
BETAS, ADAM_EPS = (0.9, 0.999), 1e-8
SGD_MOMENTUM, DECAY = 0.9, 0.0625
STEP_SIZE = 2


@dataclass
class GroupTruth:
    """A group of the optimiser: its adapters, its present learning rate, and its weight decay."""

    names: tuple[str, ...]
    lr: float
    decay: float = 0.0


@dataclass
class OptimiserTruth:
    """An optimiser: SGD with momentum, Adam or AdamW.

    Attributes:
        kind: `sgd`, `momentum`, `adam` or `adamw`.
        state: by adapter what the optimiser keeps, under torch's names.
    """

    kind: str
    groups: list[GroupTruth]
    state: dict[str, dict[str, Any]] = field(default_factory=dict)

    def copy(self) -> OptimiserTruth:
        """A copy that later changes do not reach."""
        groups = [dataclasses.replace(group) for group in self.groups]
        return OptimiserTruth(self.kind, groups, {name: dict(held) for name, held in self.state.items()})

    def step(self, values: dict[str, Array], gradients: dict[str, Array]) -> None:
        """Change the values by one step."""
        for group in self.groups:
            for name in (name for name in group.names if name in gradients):  # torch skips a tensor without gradient
                update = self._adam if self.kind.startswith("adam") else self._sgd
                values[name] = update(group, values[name], gradients[name], self.state.setdefault(name, {}))

    def _sgd(self, group: GroupTruth, value: Array, gradient: Array, state: dict[str, Any]) -> Array:
        if self.kind == "momentum":
            gradient = SGD_MOMENTUM * state.get("momentum_buffer", 0.0) + gradient
            state["momentum_buffer"] = gradient
        return np.asarray(value - group.lr * gradient)

    def _adam(self, group: GroupTruth, value: Array, gradient: Array, state: dict[str, Any]) -> Array:
        if self.kind == "adamw":
            value = value * (1 - group.lr * group.decay)
        else:
            gradient = gradient + group.decay * value
        first, second = BETAS
        step = state.get("step", 0) + 1
        mean = first * state.get("exp_avg", 0.0) + (1 - first) * gradient
        square = second * state.get("exp_avg_sq", 0.0) + (1 - second) * gradient**2
        state.update(step=step, exp_avg=mean, exp_avg_sq=square)
        root = np.sqrt(square / (1 - second**step)) + ADAM_EPS
        return np.asarray(value - group.lr * (mean / (1 - first**step)) / root)


@dataclass
class SchedulerTruth:
    """A learning-rate scheduler: `exponential` multiplies at each step, `steps` at every second one."""

    kind: str
    gamma: float
    count: int = 0

    def step(self, groups: list[GroupTruth]) -> None:
        """Change the learning rates by one step."""
        self.count += 1
        if self.kind == "exponential" or self.count % STEP_SIZE == 0:
            for group in groups:
                group.lr *= self.gamma


@dataclass
class RunTruth:
    """The exact state of a run.

    Attributes:
        values: the network's tensors by name, those of the adapters without `.weight`.
        gradients: what has accumulated; empty after a step.
        loss: `mean_squares` or `half_squares`.
        mode: the mode of a split model; empty where the model is not split.
        calls: micro-batches so far.
        frozen: the adapters that do not require grad.
        ranges: of the inputs of each frozen product, for static quantisation; empty for dynamic.
    """

    values: dict[str, Any]
    optimiser: OptimiserTruth
    scheduler: SchedulerTruth | None
    steps: int
    max_norm: float | None
    loss: str = "mean_squares"
    gradients: dict[str, Array] = field(default_factory=dict)
    training: bool = True
    calibrate: bool = False
    run_optimizer: bool = False
    mode: str = ""
    calls: int = 0
    frozen: tuple[str, ...] = ()
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)

    def copy(self, **changes: Any) -> RunTruth:
        """A copy that later changes do not reach; arrays are shared, since none is changed in place."""
        own: dict[str, Any] = {
            "values": dict(self.values),
            "gradients": dict(self.gradients),
            "optimiser": self.optimiser.copy(),
            "scheduler": self.scheduler and dataclasses.replace(self.scheduler),
        }
        return dataclasses.replace(self, **own | changes)

    def call(self, x: Array, labels: Array) -> tuple[float, float | None]:
        """Train on a micro-batch; return the loss and the norm that the call returns."""
        loss, gradients = self.differentiate(x, labels)
        self.calls += 1
        for name in (name for name in gradients if name not in self.frozen):
            gradient = gradients[name]
            self.gradients[name] = self.gradients.get(name, 0.0) + gradient / self.steps
        norm = None
        if self.calibrate:
            self.gradients = {}
        elif self.run_optimizer:
            if self.max_norm is not None:
                norm = self.clip(self.max_norm)
            self.optimiser.step(self.values, self.gradients)
            if self.scheduler is not None:
                self.scheduler.step(self.optimiser.groups)
            self.gradients = {}
        return loss / self.steps, norm

    def clip(self, max_norm: float) -> float:
        """Scale the gradients down to a norm; return the norm before."""
        norm = float(np.sqrt(sum((gradient**2).sum() for gradient in self.gradients.values())))
        factor = min(1.0, max_norm / (norm + 1e-6))
        self.gradients = {name: gradient * factor for name, gradient in self.gradients.items()}
        return norm

    def ranges_for(self, x: Array, labels: Array) -> dict[str, tuple[float, float]]:
        """The ranges that compiling sees for this batch, in evaluation mode and in floating point."""
        seen = _Seen()
        self.copy(training=False, mode="torch", ranges=seen).differentiate(x, labels)
        return dict(seen)

    def output(self, x: Array) -> Array:
        """The output of the network for x, in evaluation mode."""
        evaluated = self.copy(training=False)
        return evaluated._forward(x)[-1]

    def differentiate(self, x: Array, labels: Array) -> tuple[float, dict[str, Array]]:
        """The loss of a micro-batch and its gradients; the running statistics change in training."""
        v = self.values
        normed, down1, hidden, down2, out = self._forward(x)
        divisor = out.size if self.loss == "mean_squares" else 2 * len(out)
        loss = ((out - labels) ** 2).sum() / divisor
        d_out = 2 * (out - labels) / divisor
        d_down2 = SCALE * d_out @ v["outer.lora_B"]
        d_hidden = self._product(d_out, "outer.base_layer", back=True) + d_down2 @ v["outer.lora_A"]
        d_down1 = SCALE * d_hidden @ v["inner.lora_B"]
        return float(loss), {
            "inner.lora_A": d_down1.T @ normed,
            "inner.lora_B": SCALE * d_hidden.T @ down1,
            "outer.lora_A": d_down2.T @ hidden,
            "outer.lora_B": SCALE * d_out.T @ down2,
        }

    def _forward(self, x: Array) -> tuple[Array, ...]:
        v = self.values
        normed = self._norm(self._product(x, "first"))
        down1 = normed @ v["inner.lora_A"].T
        hidden = self._product(normed, "inner.base_layer") + SCALE * down1 @ v["inner.lora_B"].T
        down2 = hidden @ v["outer.lora_A"].T
        out = self._product(hidden, "outer.base_layer") + SCALE * down2 @ v["outer.lora_B"].T
        return normed, down1, hidden, down2, out

    def _norm(self, h: Array) -> Array:
        """Normalise by the statistics of the batch and move the running ones, or in evaluation by the running ones."""
        v = self.values
        if not self.training:
            return np.asarray((h - v["norm.running_mean"]) / np.sqrt(v["norm.running_var"] + EPS))
        mean, variance = h.mean(0), h.var(0)
        unbiased = variance * len(h) / (len(h) - 1)
        v["norm.running_mean"] = (1 - MOMENTUM) * v["norm.running_mean"] + MOMENTUM * mean
        v["norm.running_var"] = (1 - MOMENTUM) * v["norm.running_var"] + MOMENTUM * unbiased
        v["norm.num_batches_tracked"] = v["norm.num_batches_tracked"] + 1
        return np.asarray((h - mean) / np.sqrt(variance + EPS))

    def _product(self, x: Array, name: str, *, back: bool = False) -> Array:
        """The product with a frozen weight or, for a gradient, with its transpose; on integers in some modes."""
        weight, bias = self.values[f"{name}.weight"], None if back else self.values.get(f"{name}.bias")
        weight = weight.T if back else weight
        divisor = self.steps if back else 1  # of the loss
        product = f"{name}, {'backward' if back else 'forward'}"
        if isinstance(self.ranges, _Seen):
            self.ranges[product] = float(x.min()) / divisor, float(x.max()) / divisor
        if self.mode in ("", "torch"):
            return np.asarray(x @ weight.T + (0.0 if bias is None else bias))
        if not self.ranges:
            rows = by_row(x, N_BITS)
            _decided(rows, x, x.min(1, keepdims=True))
            return Product(rows, by_column(weight, N_BITS), bias).value()[1]
        low, high = self.ranges[product]
        rows = by_range(x / divisor, low, high, N_BITS)
        _decided(rows, np.clip(x / divisor, low, high), np.asarray(low))
        return divisor * Product(rows, symmetric(weight, N_BITS), bias).value()[1]


class _Seen(dict[str, tuple[float, float]]):
    """Ranges that are being taken."""


def _decided(q: Quantized, x: Array, least: Array) -> None:
    """Raise Inconclusive if the last bit of a float could change the integer it rounds to."""
    fractions = np.abs(x / q.scale) % 1
    lowest = np.abs(least / q.scale) % 1  # the zero point is rounded too
    if min(np.abs(fractions - 0.5).min(), np.abs(lowest - 0.5).min()) < 1e-6:
        raise Inconclusive("an element lies half-way between two integers")
