"""A batch's operands, placed in memory, and one call of the target on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from conformance.cases.memory_layout import Placed, place
from conformance.clauses.batched import values
from conformance.clauses.batched.case import BatchedCase
from conformance.clauses.batched.row_adapters import adapter_index, ranks, rows_of, scales
from conformance.judgement.outcomes import require
from conformance.judgement.recording import note
from conformance.numerics.budget import Rounding
from conformance.numerics.formats import Array, dtype_named, format_of, rounded
from conformance.target.calls import calling
from conformance.target.subject import Subject, poisoned_memory

TRAINABLE = ("x", "lora_A", "lora_B")
MARGIN = 8  # integers before and after adapter_index, each the index of adapter 0


class Batch:
    """Exact operand values of a case, with the routing, and the tensors that hold them in canary margins.

    Attributes:
        index: [M], the adapter of each row.   ranks: [L].   scales: [L].
        values: by name; lora_A and lora_B hold zeros beyond each rank.
    """

    def __init__(self, subject: Subject, case: BatchedCase) -> None:
        self.case, self.device = case, subject.device
        self.index, self.ranks, self.scales = adapter_index(case), ranks(case), scales(case)
        self.dtype = dtype_named(case.dtype)
        self.adapter_dtype = self.dtype if case.adapter == "same" else dtype_named(case.adapter)
        # under autocast the values are representable in its dtype, and their tensors have the case's dtype
        self.computed_in = self.dtype if case.autocast == "off" else dtype_named(case.autocast)
        narrowest = min(format_of(d).exact for d in (self.dtype, self.adapter_dtype, self.computed_in))
        exact = values.drawn(case, narrowest)
        if not case.bias:
            del exact["bias"]
        self.values = {name: rounded(v, self._represents(name)) for name, v in exact.items()}

    def _represents(self, name: str) -> torch.dtype:
        return self.computed_in if self.case.autocast != "off" else self.holds(name)

    def holds(self, name: str) -> torch.dtype:
        """The dtype of an operand's tensor."""
        return self.adapter_dtype if name.startswith("lora_") else self.dtype

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

    def rows(self, name: str) -> Array:
        """x or g as a matrix."""
        found = self.values[name]
        return found.reshape(rows_of(self.case), found.shape[-1])

    @cached_property
    def placed(self) -> dict[str, Placed]:
        """Each floating point operand as a view inside a larger buffer; made once."""
        case = self.case
        layouts = {"x": case.x, "g": case.g, "weight": case.w, "lora_A": case.ab, "lora_B": case.ab}
        found = {}
        for name, value in self.values.items():
            held = self._padded(name, value) if name.startswith("lora_") else value
            found[name] = place(held, self.holds(name), layouts.get(name, "packed"), self.device)
        return found

    def _padded(self, name: str, value: Array) -> Array:
        """The values with the canary beyond each rank, if the case says so."""
        if self.case.padding == "zeros":
            return value
        held, canary = value.copy(), self.canary(name)
        for adapter, rank in enumerate(self.ranks):
            held[adapter, rank:] = canary if name == "lora_A" else held[adapter, rank:]
            held[adapter, :, rank:] = canary if name == "lora_B" else held[adapter, :, rank:]
        return held

    def canary(self, name: str) -> float:
        """NaN; in 16 bits on a CPU a huge number, since torch's own products read past a row there."""
        sixteen_bit_on_cpu = self.device == "cpu" and self.holds(name).itemsize == 2
        return format_of(self.holds(name)).largest / 2 if sixteen_bit_on_cpu else np.nan

    @cached_property
    def metadata(self) -> dict[str, torch.Tensor]:
        """The tensors adapter_index, scale and ranks; ranks is missing where the argument is None."""
        case, kind = self.case, getattr(torch, self.case.index)
        buffer = torch.zeros(2 * MARGIN + 2 * len(self.index), dtype=kind)
        step = 2 if case.x == "strided" else 1
        inside = slice(MARGIN, MARGIN + step * len(self.index), step)
        buffer[inside].copy_(torch.from_numpy(self.index))
        index = buffer.to(self.device)[inside].reshape(case.leading)
        found = {"adapter_index": index, "scale": torch.tensor(self.scales, dtype=torch.float32, device=self.device)}
        if case.ranks != "none":
            found["ranks"] = torch.from_numpy(self.ranks).to(self.device, kind)
        return found


@dataclass
class Bound:
    """The target bound to a batch's operands.

    Attributes:
        tensors: the floating point operands by name.   metadata: adapter_index, scale, and ranks if given.
    """

    batch: Batch
    call: Callable[..., Any]
    tensors: dict[str, torch.Tensor]
    metadata: dict[str, torch.Tensor]

    def require_grad(self, needs: Sequence[str]) -> None:
        """Ask for the gradients of exactly these operands."""
        for name, tensor in self.tensors.items():
            tensor.requires_grad_(name in needs)

    def forward(self) -> torch.Tensor:
        """Run the target once."""
        held, extra = self.tensors, self.metadata
        layer = (held["x"], extra["adapter_index"], held["weight"], held.get("bias"))
        adapters = (held["lora_A"], held["lora_B"], extra["scale"])
        options = {"ranks": extra["ranks"]} if "ranks" in extra else {}
        with poisoned_memory(), calling("the forward pass"):
            y: Any = self.call(*layer, *adapters, **options)
        require(isinstance(y, torch.Tensor), f"the forward pass returned {type(y).__name__}: expected a tensor")
        return y  # type: ignore[no-any-return]

    def backward(self, y: torch.Tensor, *, retain_graph: bool = False) -> None:
        """Run backward from the case's upstream gradient."""
        upstream = self.batch.placed["g"].tensor
        require(y.requires_grad, "y does not require grad although an operand does")
        require(y.shape == upstream.shape, f"y has shape {list(y.shape)}: expected {list(upstream.shape)}")
        with poisoned_memory(), calling("the backward pass"):
            torch.autograd.backward([y], [upstream.to(y.dtype)], retain_graph=retain_graph)

    def gradient(self, name: str) -> torch.Tensor | None:
        """The accumulated gradient of an operand."""
        return self.tensors[name].grad


def bound(subject: Subject, batch: Batch) -> Bound:
    """The subject with the batch's operands as its arguments."""
    note(options={})
    tensors = {name: placed.tensor for name, placed in batch.placed.items() if name != "g"}
    return Bound(batch, subject.thing, tensors, batch.metadata)


def output(subject: Subject, batch: Batch) -> torch.Tensor:
    """One forward pass without gradients."""
    with torch.no_grad():
        return bound(subject, batch).forward()


def run(subject: Subject, batch: Batch, needs: Sequence[str] = TRAINABLE) -> Bound:
    """Run forward and backward once; exactly the operands in `needs` require grad."""
    instance = bound(subject, batch)
    instance.require_grad(needs)
    instance.backward(instance.forward())
    return instance
