"""A grouped layer's operands, placed in memory, and one call of the target on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from conformance.cases.memory_layout import Placed, place
from conformance.clauses.experts import values
from conformance.clauses.experts.case import Chosen, GroupedCase, routes
from conformance.judgement.outcomes import require
from conformance.judgement.recording import note
from conformance.numerics.budget import Rounding
from conformance.numerics.formats import Array, dtype_named, format_of, rounded
from conformance.target.calls import calling
from conformance.target.subject import Subject, poisoned_memory

TRAINABLE = ("x", "lora_A", "lora_B")
SORTED = "lora_grouped_linear_sorted"


class Grouped:
    """Exact operand values of a case, and the tensors that hold them between canary margins.

    Attributes:
        index: the expert of each row; sorted, with the absent rows last, for the function of sorted rows.
    """

    def __init__(self, subject: Subject, case: GroupedCase) -> None:
        self.case, self.device, self.is_sorted = case, subject.device, subject.name == SORTED
        self.dtype = dtype_named(case.dtype)
        self.adapter_dtype = self.dtype if case.adapter == "same" else dtype_named(case.adapter)
        # under autocast the values are representable in its dtype, and their tensors have the case's dtype
        self.computed_in = self.dtype if case.autocast == "off" else dtype_named(case.autocast)
        limit = min(format_of(d).exact for d in (self.dtype, self.adapter_dtype, self.computed_in))
        exact = values.drawn(case, limit)
        self.values = {name: rounded(v, self._represents(name)) for name, v in exact.items()}
        self.index = routes(case)
        if self.is_sorted:
            absent = (self.index < 0) | (self.index >= case.experts)
            order = np.argsort(np.where(absent, case.experts, self.index), kind="stable")
            self.index = self.index[order]
            for name in ("x", "g"):
                self.values[name] = self.rows(name)[order].reshape(self.values[name].shape)

    def _represents(self, name: str) -> torch.dtype:
        return self.computed_in if self.case.autocast != "off" else self.holds(name)

    def holds(self, name: str) -> torch.dtype:
        """The dtype of an operand's tensor."""
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
        return Rounding(self.dtype, self.adapter_dtype, correlated)

    @property
    def present(self) -> Chosen:
        """Whether each row has an expert."""
        return np.asarray((self.index >= 0) & (self.index < self.case.experts), dtype=np.bool_)

    def rows(self, name: str) -> Array:
        """x or g as a matrix."""
        return self.values[name].reshape(len(self.index), self.values[name].shape[-1])

    @cached_property
    def placed(self) -> dict[str, Placed]:
        """Each operand as a view inside a larger buffer; made once."""
        case = self.case
        layouts = {"x": case.x, "g": case.g, "weight": case.w, "lora_A": case.ab, "lora_B": case.ab}
        return {
            name: place(v, self.holds(name), layouts.get(name, "packed"), self.device)
            for name, v in self.values.items()
        }

    @cached_property
    def routing(self) -> torch.Tensor:
        """The tensor of indices [*], or of offsets [E] for sorted rows."""
        dtype = torch.int32 if self.case.index == "int32" else torch.int64
        if self.is_sorted:
            ends = [int((self.index[self.present] <= e).sum()) for e in range(self.case.experts)]
            return torch.tensor(ends, dtype=dtype, device=self.device)
        return torch.from_numpy(self.index.reshape(self.case.leading)).to(self.device, dtype)


@dataclass
class Bound:
    """The target bound to a grouped layer's operands."""

    grouped: Grouped
    call: Callable[[torch.Tensor], Any]
    tensors: dict[str, torch.Tensor]

    def require_grad(self, needs: Sequence[str] = TRAINABLE) -> None:
        """Ask for the gradients of exactly these operands."""
        for name, tensor in self.tensors.items():
            tensor.requires_grad_(name in needs)

    def forward(self) -> torch.Tensor:
        """Run the target once on the case's x."""
        with poisoned_memory(), calling("the forward pass"):
            y: Any = self.call(self.tensors["x"])
        require(isinstance(y, torch.Tensor), f"the forward pass returned {type(y).__name__}: expected a tensor")
        return y  # type: ignore[no-any-return]

    def backward(self, y: torch.Tensor, *, retain_graph: bool = False) -> None:
        """Run backward from the case's upstream gradient."""
        require(y.requires_grad, "the output does not require grad although an operand does")
        upstream = self.grouped.placed["g"].tensor
        require(y.shape == upstream.shape, f"y has shape {list(y.shape)}: expected {list(upstream.shape)}")
        with poisoned_memory(), calling("the backward pass"):
            torch.autograd.backward([y], [upstream.to(y.dtype)], retain_graph=retain_graph)

    def gradient(self, name: str) -> torch.Tensor | None:
        """The accumulated gradient of an operand."""
        return self.tensors[name].grad


def bound(subject: Subject, grouped: Grouped) -> Bound:
    """The subject with the grouped layer's operands as its arguments."""
    note(options={})
    case = grouped.case
    tensors = {name: placed.tensor for name, placed in grouped.placed.items() if name != "g"}
    drop = {"dropout": case.dropout, "dropout_position": case.position, "training": case.training}

    def call(x: torch.Tensor) -> Any:
        operands = [tensors.get(name) for name in ("weight", "bias", "lora_A", "lora_B")]
        return subject.thing(x, grouped.routing, *operands, case.scale, **(drop if case.dropout else {}))

    return Bound(grouped, call, tensors)


def run(subject: Subject, grouped: Grouped, needs: Sequence[str] = TRAINABLE) -> Bound:
    """Run forward and backward once; exactly the operands in `needs` require grad."""
    instance = bound(subject, grouped)
    instance.require_grad(needs)
    instance.backward(instance.forward())
    return instance
