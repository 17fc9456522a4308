"""A model with one layer that the target splits: helpers to build it, compile it, and run it in a mode."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn

from conformance.clauses.fhe.quantized_case import Problem
from conformance.clauses.hybrid.frozen_layer import backward
from conformance.clauses.hybrid.module_tree import conv1d
from conformance.judgement.outcomes import require
from conformance.numerics.formats import Array, numbers
from conformance.target.calls import calling
from conformance.target.expected_errors import calling_quietly, quiet
from conformance.target.subject import Subject, poisoned_memory


class Holder(nn.Module):
    """A model of one layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> Any:
        return self.layer(x)


def linear(weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Linear:
    """An nn.Linear that holds exactly these Parameters."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta", dtype=weight.dtype)
    layer.weight, layer.bias = weight, bias  # type: ignore[assignment]
    return layer


def split(subject: Subject, model: nn.Module, names: list[str], **options: Any) -> Any:
    """The target's HybridFHEModel over a model."""
    with calling_quietly(f"HybridFHEModel(model, {names})"):
        return subject.thing(model, names, **options)


class Split:
    """A one-layer model with the problem's weight and bias, split by the target.

    Args:
        kind: `linear`, an nn.Linear whose forward product alone runs remotely; `conv1d`, a Conv1D likewise; `custom`,
            a CustomLinear with both products.
        options: arguments of HybridFHEModel.
    """

    def __init__(self, subject: Subject, problem: Problem, kind: str = "custom", **options: Any) -> None:
        self.problem, self.kind = problem, kind
        self.weight, self.bias = problem.weight, problem.bias
        self.names = ["layer"]
        if kind == "custom":
            with calling("CustomLinear(weight, bias)"):
                layer = subject.target.CustomLinear(self.weight, self.bias)
            self.names = ["layer.forward_module", "layer.backward_module"]
        elif kind == "linear":
            layer = linear(self.weight, self.bias)
        else:
            assert self.bias is not None
            layer = conv1d(problem.case.n, problem.case.k)
            layer.weight, layer.bias = nn.Parameter(self.weight.t(), requires_grad=False), self.bias
        self.net = Holder(layer)
        self.hybrid = split(subject, self.net, self.names, **options)

    def compile(self, x: torch.Tensor | None = None, **options: Any) -> Split:
        """Compile with the case's n_bits, on the given x or on a fixed one."""
        if x is None:
            x = torch.linspace(-1, 1, 2 * self.problem.case.k).reshape(2, -1).to(self.weight)
        shown = "".join(f", {name}={value}" for name, value in options.items())
        n_bits = self.problem.case.n_bits
        with calling(f"compile_model(x, n_bits={n_bits}{shown})"):
            self.hybrid.compile_model(x, n_bits=n_bits, **options)
        return self

    def forward(self, mode: str, x: torch.Tensor | None = None) -> torch.Tensor:
        """The model's output in a mode."""
        return run(self.hybrid, mode, self.problem["x"] if x is None else x)

    def both(self, mode: str, x: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """y and dX in a mode, for the problem's g; the gradient goes to a detached x."""
        leaf = (self.problem["x"] if x is None else x).detach().requires_grad_(True)
        y = self.forward(mode, leaf)
        with quiet():
            backward(y, self.problem["g"])
        require(leaf.grad is not None, f"x got no gradient in mode {mode}")
        assert leaf.grad is not None
        return y.detach(), leaf.grad

    def noted(self, mode: str, x: torch.Tensor) -> tuple[torch.Tensor, list[str]]:
        """The output in a mode, and the texts of the warnings."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            y = run(self.hybrid, mode, x, silent=False)
        return y, [str(w.message) for w in caught]


def run(hybrid: Any, mode: Any, x: Any, *, silent: bool = True) -> torch.Tensor:
    """Call a split model in a mode and require a tensor; warnings are ignored if silent."""
    with quiet() if silent else nullcontext(), poisoned_memory(), calling(f"the model with fhe={mode!r}"):
        y = hybrid(x, fhe=mode)
    require(isinstance(y, torch.Tensor), f"the model returned {type(y).__name__}: expected a tensor")
    assert isinstance(y, torch.Tensor)
    return y


def whole_noise(split: Split, mode: str, unit: Array) -> Array:
    """The noise of one call in a mode, in whole units of the integer product."""
    clear = numbers(split.forward("disable"))
    with quiet():  # parameters that are not secure may warn
        noisy = numbers(split.forward(mode))
    noise = (noisy - clear) / unit
    whole = np.rint(noise)
    require(
        bool((np.abs(noise - whole) <= 1e-3).all()),
        f"the noise of mode {mode} is no whole number of units of the integer result",
    )
    return np.asarray(whole)


def calibrated(split: Split, passes: list[tuple[torch.Tensor, torch.Tensor]], compiled_on: torch.Tensor) -> Split:
    """Run these (x, g) in mode calibrate, then compile with static quantisation."""
    for x, g in passes:
        leaf = x.detach().requires_grad_(True)
        y = split.forward("calibrate", leaf)
        backward(y, g)
    return split.compile(compiled_on, use_dynamic_quantization=False)
