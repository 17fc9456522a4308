"""The timed layers: the frozen layer, and each target's layer around a copy of it, with the same adapter."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from conformance.bench.cases import Size
from conformance.isolation.monkeypatches import PRISTINE
from conformance.numerics.formats import dtype_named
from conformance.target.target import Target

SCALE = 2.0  # alpha ÷ r of every layer


@dataclass(frozen=True)
class Problem:
    """One measurement: a size, a dtype, and what is timed there."""

    size: Size
    dtype: str
    device: str = "cpu"
    dropout: float = 0.0
    position: str = "post"
    memory_efficient: bool = False
    adapters: int = 0  # of a batch whose rows use different ones; 0 for layers
    base: str = ""  # the format of a packed base; empty for a floating point base
    mixture: bool = False  # whether modules of experts are timed, rather than rows that choose their expert

    def __str__(self) -> str:
        text = f"{self.size} {self.dtype}"
        text += f", dropout {self.dropout:g} {self.position}" if self.dropout else ""
        text += f", {self.adapters} adapters" if self.adapters else ""
        text += f", base {self.base}" if self.base else ""
        text += ", modules of two projections" if self.mixture else ""
        return text + (", memory-efficient" if self.memory_efficient else "")


class Operands:
    """x [M, K], g [M, N], the frozen layer, and an adapter A [r, K], B [N, r] with nonzero B."""

    def __init__(self, problem: Problem) -> None:
        size = problem.size
        place: Any = {"dtype": dtype_named(problem.dtype), "device": problem.device}
        draws = torch.Generator(problem.device).manual_seed(0)

        def drawn(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=draws, **place)

        self.x, self.g = drawn(size.m, size.k).requires_grad_(), drawn(size.m, size.n)
        self.lora_A, self.lora_B = drawn(size.r, size.k) / size.k**0.5, drawn(size.n, size.r)
        self.frozen = nn.Linear(size.k, size.n, **place).requires_grad_(False)

    def layer(self, function: Any) -> nn.Module:
        """A function with these operands as a layer; operands of batches have one."""
        raise NotImplementedError(f"these are operands of a layer, not of {function}")


@dataclass(frozen=True)
class Contender:
    """One layer of a target.

    Attributes:
        subject: the timed public name of the target.
        replaced: the target's monkeypatches, which are active while its layer runs.
        ranked: whether the layer gets a place; False if the target fails a clause on what is timed.
    """

    target: Target
    subject: str
    replaced: dict[Any, Any] = field(default_factory=dict)
    ranked: bool = True

    @property
    def label(self) -> str:
        """The label in tables: the target's spec, and the subject if it is no layer."""
        return self.target.spec + ("" if self.subject in ("LinearLoRA", "packed_linear") else f" {self.subject}")

    @contextmanager
    def running(self) -> Iterator[None]:
        """A region in which the target's monkeypatches are active."""
        PRISTINE.replaced = dict(self.replaced)
        with PRISTINE.suspended():
            yield

    def built(self, problem: Problem, operands: Operands) -> nn.Module:
        """The layer in training mode, with the operands' values."""
        thing = getattr(self.target.thing, self.subject)
        if problem.adapters:
            return operands.layer(thing)
        if self.subject == "lora_linear":
            return FunctionLayer(thing, problem, operands)
        return with_adapter(thing, copy.deepcopy(operands.frozen), problem, operands)


def with_adapter(adapt: Any, base: nn.Module, problem: Problem, operands: Operands) -> nn.Module:
    """A base that a target's class or function has adapted, in training mode, with the operands' adapter."""
    options: dict[str, Any] = {"use_memory_efficient_lora": True} if problem.memory_efficient else {}
    if problem.dropout:
        options |= {"dropout": problem.dropout, "dropout_position": problem.position}
    layer: nn.Module = adapt(base, problem.size.r, round(SCALE * problem.size.r), **options)
    lora_A, lora_B = factors(layer)
    with torch.no_grad():
        lora_A.copy_(operands.lora_A)
        lora_B.copy_(operands.lora_B)
    return layer.train()


def factors(layer: Any) -> tuple[Tensor, Tensor]:
    """The tensors A and B of an adapted layer: parameters, of modules, or as in PEFT of a module for each adapter."""
    found = []
    for factor in (layer.lora_A, layer.lora_B):
        module: Any = next(iter(factor.values())) if isinstance(factor, nn.ModuleDict) else factor
        found.append(getattr(module, "weight", module))
    return found[0], found[1]


class FunctionLayer(nn.Module):
    """A target's `lora_linear` and its operands as a layer."""

    def __init__(self, function: Any, problem: Problem, operands: Operands) -> None:
        super().__init__()
        self.function = function
        self.base = copy.deepcopy(operands.frozen)
        self.lora_A, self.lora_B = nn.Parameter(operands.lora_A.clone()), nn.Parameter(operands.lora_B.clone())
        self.options: dict[str, Any] = {}
        if problem.dropout:
            self.options = {"dropout": problem.dropout, "dropout_position": problem.position}

    def forward(self, x: Tensor) -> Any:
        """The output of the function."""
        options = {**self.options, "training": self.training} if self.options else {}
        return self.function(x, self.base.weight, self.base.bias, self.lora_A, self.lora_B, SCALE, **options)


def contenders(
    spec: str, device: str, adapters: int = 0, *, experts: bool = False, packed: bool = False
) -> list[Contender]:
    """The timed layers of a target: its layer, or else its function; on a GPU its Triton layer as well.

    With a number of adapters it is the function of the group `batched`, with experts its `lora_grouped_linear`, and
    with a packed base its `packed_linear`, adapted by its `patch_linear_module`.

    On a CPU, Triton kernels are interpreted, so their time is meaningless.
    """
    target = Target.load(spec, device)
    replaced = dict(PRISTINE.replaced)
    if adapters:
        return [Contender(target, "lora_batched_linear", replaced)]
    if experts or packed:
        return [Contender(target, "packed_linear" if packed else "lora_grouped_linear", replaced)]
    names = ["LinearLoRA"] if target.has("LinearLoRA") else ["lora_linear"]
    names += ["TritonLinearLoRA"] if device != "cpu" and target.has("TritonLinearLoRA") else []
    return [Contender(target, name, replaced) for name in names]


def step(layer: nn.Module, x: Tensor, g: Tensor) -> None:
    """Run forward and backward, and clear all gradients."""
    layer(x).backward(g)
    x.grad = None
    for parameter in layer.parameters():
        parameter.grad = None
