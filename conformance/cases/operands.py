"""Operands of one LoRA linear layer, made from a case: exact values, tensors in memory, and their rounding."""

from __future__ import annotations

import math
from functools import cached_property

import torch

from conformance.cases import operand_values
from conformance.cases.linear_case import LinearCase
from conformance.cases.memory_layout import Placed, place
from conformance.numerics.budget import Rounding
from conformance.numerics.formats import Array, dtype_named, format_of, rounded


class Operands:
    """Exact operand values of a case, and the tensors that hold them between canary margins.

    The values are float64 arrays of numbers that the operand's dtype represents: oracle and target see the same ones.
    """

    in_input_dtype = False

    def __init__(
        self, case: LinearCase, device: str = "cpu", *, alpha: float = 1.0, in_input_dtype: bool = False
    ) -> None:
        """Draw the values.

        Args:
            alpha: a factor by which the target may multiply the update before it divides by the rank.
            in_input_dtype: whether the update is computed in the dtype of x, to which a wider adapter is rounded first.
        """
        self.case, self.device = case, device
        self.dtype = dtype_named(case.dtype)
        self.adapter_dtype = self.dtype if case.adapter == "same" else dtype_named(case.adapter)
        # under autocast, the autocast dtype represents the values, and the tensors have the case's dtype
        self.computed_in = self.dtype if case.autocast == "off" else dtype_named(case.autocast)
        self.in_input_dtype = in_input_dtype
        self.scale = case.scale
        self.shape = (*case.leading, case.n)
        drawn = (
            operand_values.integers(case, self.exact_limit, alpha) if self.exact else operand_values.floats(case, alpha)
        )
        kinds = dict.fromkeys(("lora_A", "lora_B"), self.update_dtype)
        if case.autocast != "off":
            kinds = dict.fromkeys(drawn, self.computed_in)
        self.values = {name: rounded(v, kinds.get(name, self.dtype)) for name, v in drawn.items()}
        if not case.bias:
            del self.values["bias"]

    @property
    def update_dtype(self) -> torch.dtype:
        """The dtype of the adapter's values: its own, or that of x, to which a wider adapter is rounded."""
        wider = format_of(self.adapter_dtype).unit < format_of(self.dtype).unit
        return self.dtype if self.in_input_dtype and wider else self.adapter_dtype

    @property
    def exact(self) -> bool:
        """Whether the values are exact integers, which no order of summation rounds."""
        return self.case.values in ("integers", "cancelling")

    @property
    def exact_limit(self) -> int:
        return min(format_of(d).exact for d in (self.dtype, self.adapter_dtype, self.computed_in))

    @property
    def rounding(self) -> Rounding:
        """The rounding that the budget assumes for this case."""
        correlated = "expanded" in (self.case.x, self.case.g)
        if self.case.autocast != "off":
            return Rounding(self.computed_in, self.computed_in, correlated)
        return Rounding(self.dtype, self.update_dtype, correlated)

    @property
    def degenerate(self) -> bool:
        """Whether gradients are zero by construction (no tokens, or scale 0): compared exactly, without certificate."""
        return self.scale == 0 or math.prod(self.case.leading) == 0

    def rows(self, name: str) -> Array:
        """x or g as a matrix [M, K] or [M, N]."""
        values = self.values[name]
        return values.reshape(math.prod(self.case.leading), values.shape[-1])

    @cached_property
    def placed(self) -> dict[str, Placed]:
        """Each operand as a view inside a larger buffer."""
        case = self.case
        layouts = {"x": case.x, "g": case.g, "weight": case.w, "lora_A": case.ab, "lora_B": case.ab}
        kinds = dict.fromkeys(("lora_A", "lora_B"), self.adapter_dtype)
        return {
            name: place(values, kinds.get(name, self.dtype), layouts.get(name, "packed"), self.device)
            for name, values in self.values.items()
        }

    def tensor(self, name: str) -> torch.Tensor | None:
        """The placed tensor of that name; None for an absent bias."""
        return self.placed[name].tensor if name in self.placed else None
