"""A subject: one public name of a target (a function or a layer class), wrapped in the few calls that checks need."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from conformance.cases.linear_case import LinearCase
from conformance.cases.operands import Operands
from conformance.judgement.outcomes import require
from conformance.judgement.recording import note
from conformance.specification.features import ABSENT, FEATURES, SUPPORTED
from conformance.target.adapter_tensors import MAGNITUDE, adapter_of, base_tensor
from conformance.target.calls import calling
from conformance.target.signature import NEUTRAL, arguments_for, takes

TRAINABLE = ("x", "lora_A", "lora_B")
WIDEST = 70  # the largest rank of the case spaces


@dataclass(frozen=True)
class Subject:
    """One judged name of a target and its object.

    Attributes:
        name: the public name (`lora_linear`, `TritonLinearLoRA`).
        thing: the function, class or module itself.
        target: the whole target, for checks that need other names of it.
        device: the device of the operands.
        lane: how the subject runs on that device: `cpu`, `interpreter` or `gpu`.
        dropout_positions: the dropout positions that it supports.
        conventions: the features that the target declares, or shows to lack or to do otherwise, with their values.
    """

    name: str
    thing: Any
    target: Any = field(default_factory=SimpleNamespace)
    device: str = "cpu"
    lane: str = "cpu"
    dropout_positions: tuple[str, ...] = ("pre", "post")
    conventions: tuple[tuple[str, str], ...] = ()

    def operands(self, case: LinearCase) -> Operands:
        """The case's operands on this subject's device.

        A layer's case gets a nonnegative scale, because alpha is nonnegative, and a dropout position it supports, or
        no dropout where it supports none. A layer may multiply by alpha first and divide by the rank then, so that
        alpha is bounded where all sums are exact, and so is the rank: g/66·66 is g in every dtype, g/70·70 is not.
        """
        takes_none = self.is_layer and (takes(self.thing, "dropout") is None or self.lacks("dropout"))
        if case.dropout and (takes_none or not self.dropout_positions):
            case = dataclasses.replace(case, dropout=0.0)  # a clause about dropout is not claimed
        if self.dropout_positions and case.position not in self.dropout_positions:
            case = dataclasses.replace(case, position=self.dropout_positions[0])
        if self.is_layer and case.scale < 0:
            case = dataclasses.replace(case, scale=-case.scale)
        if self.is_layer and case.r == WIDEST and case.values in ("integers", "cancelling"):
            case = dataclasses.replace(case, r=WIDEST - 4)
        alpha = float(case.scale * case.r) if self.is_layer else 1.0
        return Operands(case, self.device, alpha=alpha, in_input_dtype=self.follows("adapter_dtype", "input dtype"))

    def within_limits(self, case: Any) -> Any:
        """A case that the subject accepts: of a rank, a scale, a bias and leading dimensions that a layer can have."""
        if hasattr(case, "within"):
            return case.within(self)
        if self.is_layer and self.lacks("base_bias") and getattr(case, "bias", False):
            case = dataclasses.replace(case, bias=False)
        if not self.is_layer or not isinstance(case, LinearCase):
            return case
        if self.lacks("vector_inputs") and case.lead == "1d":
            case = dataclasses.replace(case, lead="2d")
        least = min(case.k, case.n)
        if self.lacks("large_rank") and case.r > least:
            case = dataclasses.replace(case, r=least)
        if self.lacks("alpha") or (self.convention("zero_alpha") != SUPPORTED and not case.scale):
            case = dataclasses.replace(case, scale=1.0)  # what alpha = 0 means where it means alpha = rank
        if self.follows("eval_mode", "merged") and not case.training and not case.dropout:
            case = dataclasses.replace(case, training=True)  # its adapter has no gradient in eval mode
        return case

    def lacks(self, feature: str) -> bool:
        """Whether the target lacks a feature, as it declares or as its class shows."""
        return self.follows(feature, ABSENT)

    def takes(self, argument: str) -> bool:
        """Whether the callable takes an argument, and the target does not declare that it lacks what it is for."""
        lacked = any(argument == FEATURES[name].option for name, value in self.conventions if value == ABSENT)
        return takes(self.thing, argument) is not None and not lacked

    def _is_given(self, argument: str, value: Any) -> bool:
        """Whether a layer is to get an option: not if it changes nothing, and the target lacks what it is for."""
        return self.takes(argument) or argument not in NEUTRAL or NEUTRAL[argument] not in (value, ...)

    def follows(self, feature: str, convention: str) -> bool:
        """Whether the target declares, or shows, this convention of a feature."""
        return (feature, convention) in self.conventions

    def convention(self, feature: str) -> str:
        """The target's convention of a feature: the default where the target declares and shows no other."""
        return dict(self.conventions).get(feature, FEATURES[feature].conventions[0])

    @property
    def has_base(self) -> bool:
        """Whether the subject computes the whole layer, not only the adapter term."""
        return self.name != "LoRATritonFunction"

    @property
    def is_layer(self) -> bool:
        """Whether the subject is a module class."""
        return self.name.endswith("LinearLoRA")

    def build(self, operands: Operands, **options: Any) -> Instance:
        """A layer, or a function, bound to the operands.

        Args:
            options: further keyword arguments of the layer.
        """
        options = {name: value for name, value in options.items() if self._is_given(name, value)}
        note(operands=operands, options=options)
        if self.is_layer:
            return _built_layer(self, operands, options)
        return _bound_function(self, operands)


@dataclass
class Instance:
    """A layer or function bound to its weights: `call(x) -> y`, and the tensors whose gradients are judged."""

    call: Callable[[torch.Tensor], Any]
    tensors: dict[str, torch.Tensor]
    operands: Operands
    module: Any = None

    def require_grad(self, names: Sequence[str]) -> None:
        """Set `requires_grad` on these operands and unset it on the others."""
        note(needs=tuple(names))
        for name, tensor in self.tensors.items():
            if name == "weight" or (name == "bias" and name not in names):
                continue  # the implementation itself must freeze it; that is judged
            tensor.requires_grad_(name in names)

    def forward(self) -> torch.Tensor:
        """Run the target once on the case's x."""
        with poisoned_memory(), calling("the forward pass"):
            y: Any = self.call(self.tensors["x"])
        require(isinstance(y, torch.Tensor), f"the forward pass returned {type(y).__name__}: expected a tensor")
        return y  # type: ignore[no-any-return]

    def backward(self, y: torch.Tensor, *, retain_graph: bool = False) -> None:
        """Run backward from the case's upstream gradient."""
        require(y.requires_grad, "the output does not require grad although an operand does")
        upstream = self.operands.tensor("g")
        assert upstream is not None
        require(y.shape == upstream.shape, f"y has shape {list(y.shape)}: expected {list(upstream.shape)}")
        with poisoned_memory(), calling("the backward pass"):
            torch.autograd.backward([y], [upstream.to(y.dtype)], retain_graph=retain_graph)

    def gradient(self, name: str) -> torch.Tensor | None:
        """The accumulated gradient of an operand, of a magnitude as [N]."""
        gradient = self.tensors[name].grad
        return gradient.flatten() if name == MAGNITUDE and gradient is not None else gradient


def run(subject: Subject, operands: Operands, needs: Sequence[str] = TRAINABLE, **options: Any) -> Instance:
    """Forward and backward once, with gradients of exactly the operands in `needs`."""
    instance = subject.build(operands, **options)
    instance.require_grad(needs)
    instance.backward(instance.forward())
    return instance


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """A region in which `torch.empty` returns NaN, so that unwritten output elements show."""
    # use_deterministic_algorithms would import all of torch._inductor, which takes seconds
    mode = torch.get_deterministic_debug_mode()
    memory: Any = torch.utils.deterministic
    filled = memory.fill_uninitialized_memory
    torch.set_deterministic_debug_mode("warn")
    memory.fill_uninitialized_memory = True
    try:
        yield
    finally:
        if torch.get_deterministic_debug_mode() == 1:  # keep a mode that the target has set: `kept` reports it
            torch.set_deterministic_debug_mode(mode)
        memory.fill_uninitialized_memory = filled


def _bound_function(subject: Subject, operands: Operands) -> Instance:
    case = operands.case
    tensors = {name: placed.tensor for name, placed in operands.placed.items() if name != "g"}
    lora_A, lora_B = tensors["lora_A"], tensors["lora_B"]
    if subject.has_base:
        weight, bias = tensors["weight"], tensors.get("bias")

        def call(x: torch.Tensor) -> Any:
            dropout = (
                {"dropout": case.dropout, "dropout_position": case.position, "training": case.training}
                if case.dropout
                else {}
            )
            return subject.thing(x, weight, bias, lora_A, lora_B, operands.scale, **dropout)
    else:

        def call(x: torch.Tensor) -> Any:
            return subject.thing.apply(x, lora_A, lora_B, operands.scale, x.dtype)

    return Instance(call, tensors, operands)


def _built_layer(subject: Subject, operands: Operands, options: dict[str, Any]) -> Instance:
    case = operands.case
    base = frozen_linear(operands)
    alpha = operands.scale * case.r
    arguments: dict[str, Any] = {
        "dim": case.r,
        "alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "dropout": case.dropout,
        "dropout_position": case.position,
        **options,
    }
    if operands.adapter_dtype != operands.dtype:
        arguments["lora_dtype"] = operands.adapter_dtype
    arguments = arguments_for(subject.thing, arguments)
    with calling(f"{subject.name}({', '.join(f'{k}={v}' for k, v in arguments.items())})"):
        layer = subject.thing(base, **arguments)
    adapters = {name: adapter_of(layer, name) for name in ("lora_A", "lora_B")}
    with calling(f"reading {subject.name}.weight and bias"):
        weight, bias = base_tensor(layer, "weight", base), base_tensor(layer, "bias", base)
    assert weight is not None
    for name, parameter in adapters.items():
        values = operands.tensor(name)
        assert values is not None
        require(
            parameter.shape == values.shape,
            f"{name} has shape {list(parameter.shape)}: expected {list(values.shape)}",
        )
        require(
            parameter.dtype == values.dtype,
            f"{name} has dtype {parameter.dtype}: expected {values.dtype}",
        )
        with torch.no_grad():
            parameter.copy_(values)
    with calling(f"{subject.name}.train({case.training})"):
        layer.train(case.training)  # with its adapter, which some layers merge into the weight in eval mode
    tensors = {"x": operands.placed["x"].tensor, "weight": weight, **adapters}
    if bias is not None:
        tensors["bias"] = bias
    return Instance(layer, tensors, operands, module=layer)


def frozen_linear(operands: Operands) -> nn.Linear:
    """A frozen nn.Linear whose parameters are the case's weight and bias, still between their canary margins."""
    case = operands.case
    base = nn.Linear(case.k, case.n, bias=case.bias, device="meta", dtype=operands.dtype)
    for name in ("weight", "bias"):
        values = operands.tensor(name)
        if values is not None:
            setattr(base, name, nn.Parameter(values, requires_grad=False))
    return base
