"""A fused block's operands, placed in memory, and one call of the target on them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from conformance.cases.memory_layout import Placed, place
from conformance.clauses.fused import values
from conformance.clauses.fused.case import FusedCase
from conformance.judgement.outcomes import require
from conformance.judgement.recording import note
from conformance.numerics.budget import Rounding
from conformance.numerics.formats import Array, dtype_named, format_of, rounded
from conformance.target.calls import calling
from conformance.target.subject import Subject, poisoned_memory


class Block:
    """Exact operand values of a case for `lora_qkv` or `lora_mlp`, and the tensors holding them in canary margins."""

    def __init__(self, subject: Subject, case: FusedCase) -> None:
        self.case, self.name, self.device = case, subject.name, subject.device
        self.names, self.outputs = values.names(case, subject.name), values.outputs(case, subject.name)
        self.dtype = dtype_named(case.dtype)
        self.adapter_dtype = self.dtype if case.adapter == "same" else dtype_named(case.adapter)
        # under autocast the values are representable in its dtype, and their tensors have the case's dtype
        self.computed_in = self.dtype if case.autocast == "off" else dtype_named(case.autocast)
        # where the update is computed in the dtype of x, the values of a wider adapter are numbers of that dtype
        narrowed = subject.follows("adapter_dtype", "input dtype")
        self.update_dtype = max(self.adapter_dtype, self.dtype, key=_unit) if narrowed else self.adapter_dtype
        narrowest = min(format_of(d).exact for d in (self.dtype, self.adapter_dtype, self.computed_in))
        exact = values.drawn(case, subject.name, narrowest)
        self.values = {name: rounded(v, self._represents(name)) for name, v in exact.items()}

    def _represents(self, name: str) -> torch.dtype:
        if self.case.autocast != "off":
            return self.computed_in
        return self.update_dtype if "lora_" in name else self.dtype

    def _holds(self, name: str) -> torch.dtype:
        return self.adapter_dtype if "lora_" in name else self.dtype

    @property
    def exact(self) -> bool:
        """Whether this is the exact-integer lane."""
        return self.case.values == "integers"

    @property
    def rounding(self) -> Rounding:
        """The roundings that the budget of this case allows."""
        correlated = "expanded" in (self.case.x, self.case.g)
        if self.case.autocast != "off":
            return Rounding(self.computed_in, self.computed_in, correlated)
        return Rounding(self.dtype, self.update_dtype, correlated)

    @property
    def trainable(self) -> tuple[str, ...]:
        """The names of x and of every adapter's operands."""
        return ("x", *(name for name in self.values if "lora_" in name))

    def scale(self, projection: str) -> float:
        """The scale of a projection."""
        return values.scale_of(self.case, self.name, projection)

    def rows(self, name: str) -> Array:
        """x or an upstream gradient as a matrix."""
        found = self.values[name]
        return found.reshape(math.prod(self.case.leading), found.shape[-1])

    @cached_property
    def placed(self) -> dict[str, Placed]:
        """Each operand as a view inside a larger buffer; made once."""
        case = self.case

        def layout(name: str) -> str:
            if name == "x" or name.startswith("g of"):
                return case.x if name == "x" else case.g
            return {"weight": case.w, "bias": "packed"}.get(name.rpartition(".")[2], case.ab)

        return {name: place(v, self._holds(name), layout(name), self.device) for name, v in self.values.items()}


def _unit(dtype: torch.dtype) -> float:
    return format_of(dtype).unit


@dataclass
class Bound:
    """The target bound to a block's operands."""

    block: Block
    call: Callable[[torch.Tensor], Any]
    tensors: dict[str, torch.Tensor]

    def require_grad(self, needs: Sequence[str]) -> None:
        """Ask for the gradients of exactly these operands."""
        for name, tensor in self.tensors.items():
            tensor.requires_grad_(name in needs)

    def forward(self) -> dict[str, torch.Tensor]:
        """Run the target once on the case's x, and return its outputs by name."""
        with poisoned_memory(), calling("the forward pass"):
            found: Any = self.call(self.tensors["x"])
        expected = tuple(self.block.outputs)
        ys = (found,) if expected == ("y",) else found
        require(isinstance(ys, tuple | list), f"the forward pass returned {type(found).__name__}: expected a tuple")
        require(len(ys) == len(expected), f"the forward pass returned {len(ys)} outputs: expected {len(expected)}")
        for name, y in zip(expected, ys, strict=True):
            require(isinstance(y, torch.Tensor), f"{name} is of type {type(y).__name__}: expected a tensor")
        return dict(zip(expected, ys, strict=True))

    def backward(self, ys: dict[str, torch.Tensor], *, retain_graph: bool = False) -> None:
        """Run backward with the case's upstream gradients, from those of these outputs that require grad."""
        joined = ", ".join(ys)
        require(any(y.requires_grad for y in ys.values()), f"{joined} do not require grad although an operand does")
        ys = {name: y for name, y in ys.items() if y.requires_grad}
        for name, y in ys.items():
            wanted = self.block.values[f"g of {name}"].shape
            require(tuple(y.shape) == wanted, f"{name} has shape {list(y.shape)}: expected {list(wanted)}")
        upstream = [self.block.placed[f"g of {name}"].tensor.to(y.dtype) for name, y in ys.items()]
        with poisoned_memory(), calling("the backward pass"):
            torch.autograd.backward(list(ys.values()), upstream, retain_graph=retain_graph)

    def gradient(self, name: str) -> torch.Tensor | None:
        """The accumulated gradient of an operand."""
        return self.tensors[name].grad


def bound(subject: Subject, block: Block) -> Bound:
    """The subject with the block's operands as its arguments."""
    note(options={})
    tensors = {name: placed.tensor for name, placed in block.placed.items() if not name.startswith("g of")}

    def call(x: torch.Tensor) -> Any:
        operands = ("weight", "bias", "lora_A", "lora_B")
        projections = {
            name: (*(tensors.get(f"{name}.{operand}") for operand in operands), block.scale(name))
            for name in block.names
        }
        if block.name == "lora_qkv":
            return subject.thing(x, *projections.values())
        return subject.thing(x, projections.get("gate"), projections["up"], projections["down"], block.case.activation)

    return Bound(block, call, tensors)


def run(subject: Subject, block: Block, needs: Sequence[str] | None = None) -> Bound:
    """Run forward and backward once; exactly the operands in `needs`, by default all trainable ones, require grad."""
    instance = bound(subject, block)
    instance.require_grad(block.trainable if needs is None else needs)
    instance.backward(instance.forward())
    return instance
