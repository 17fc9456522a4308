"""A frozen linear layer: its case, its operands in memory, and the expected y and dX."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from conformance.cases.case import Space
from conformance.cases.linear_case import LinearCase, tamed
from conformance.cases.memory_layout import Placed, place
from conformance.cases.operands import Operands
from conformance.judgement.judge import judge
from conformance.judgement.linear_oracle import Expected
from conformance.judgement.outcomes import require
from conformance.numerics.budget import Rounding
from conformance.numerics.formats import Array
from conformance.target.calls import calling
from conformance.target.subject import Subject, poisoned_memory


@dataclass(frozen=True)
class FrozenCase(LinearCase):
    """A `LinearCase` that uses the base layer only.

    Fields:
        transposed: the weight is given as [K, N], with weight_transposed=True.
        trainable: weight and bias are Parameters that require grad.
        how: the variant, where a clause has several.
    """

    transposed: bool = False
    trainable: bool = False
    how: str = ""


def _tamed(case: FrozenCase) -> FrozenCase:
    fitted = tamed(case)
    assert isinstance(fitted, FrozenCase)
    return fitted


FROZEN = Space(
    FrozenCase,
    tame=_tamed,
    m=(2, 1, 3, 16, 17, 33, 65),
    k=(3, 1, 2, 17, 32, 33, 65, 130, 300),
    n=(2, 1, 5, 16, 17, 33, 67, 129),
    bias=(False, True),
    transposed=(False, True),
    values=("integers", "normal", "integers", "positive", "huge-term"),
)
SMALL = FROZEN.narrowed(m=(2, 3, 17), k=(3, 5, 17, 33), n=(2, 5, 16, 35))


class Frozen:
    """The operands of a case in memory, with the weight transposed if the case says so."""

    def __init__(self, case: FrozenCase, device: str = "cpu") -> None:
        self.case, self.operands = case, Operands(case, device)
        weight = self.operands.values["weight"]
        self.placed: dict[str, Placed] = {name: self.operands.placed[name] for name in ("x", "g")}
        oriented = np.ascontiguousarray(weight.T) if case.transposed else weight
        self.placed["weight"] = place(oriented, self.operands.dtype, case.w, device)
        if case.bias:
            self.placed["bias"] = self.operands.placed["bias"]

    @property
    def x(self) -> torch.Tensor:
        return self.placed["x"].tensor

    @property
    def g(self) -> torch.Tensor:
        return self.placed["g"].tensor

    @property
    def weight(self) -> torch.Tensor:
        return self.placed["weight"].tensor

    @property
    def bias(self) -> torch.Tensor | None:
        return self.placed["bias"].tensor if "bias" in self.placed else None

    def arguments(self) -> tuple[nn.Parameter, nn.Parameter | None, bool]:
        """Weight, bias and weight_transposed, the arguments of `CustomLinear`."""
        bias = None if self.bias is None else nn.Parameter(self.bias, self.case.trainable)
        return nn.Parameter(self.weight, self.case.trainable), bias, self.case.transposed

    @property
    def y(self) -> Expected:
        """The expected `y = x Wᵀ + b`."""
        values = self.operands.values
        product, bias = self.operands.rows("x") @ values["weight"].T, values.get("bias")
        terms = {"base": product}
        if bias is not None:
            terms["bias"] = np.broadcast_to(bias, product.shape)
        absolute = np.abs(self.operands.rows("x")) @ np.abs(values["weight"]).T
        if bias is not None:
            absolute = absolute + np.abs(bias)  # a product may begin its sums with the bias, as addmm does
        return self._expected("y", terms, absolute, self.operands.computed_in)

    @property
    def dX(self) -> Expected:
        """The expected `dX = g W`."""
        weight, g = self.operands.values["weight"], self.operands.rows("g")
        return self._expected("dX", {"base": g @ weight}, np.abs(g) @ np.abs(weight), self.operands.dtype)

    def _expected(self, name: str, terms: dict[str, Array], absolute: Array, dtype: torch.dtype) -> Expected:
        how, features = self.operands.rounding, self.case.n if name == "dX" else self.case.k + ("bias" in terms)
        value = sum(terms.values(), np.zeros(()))
        allowed = product_budget(terms["base"], value, absolute, features, how)
        shape = (*self.case.leading, value.shape[-1])
        return Expected(
            name,
            value.reshape(shape),
            None if self.operands.exact else allowed.reshape(shape),
            dtype,
            {term: part.reshape(shape) for term, part in terms.items()} if len(terms) > 1 else {},
        )


def product_budget(product: Array, value: Array, absolute: Array, features: int, how: Rounding) -> Array:
    """The error budget of a product and a bias: the accumulation and the rounding of the product and of the sum."""
    steps = 4 * how.step + how.underflow(features)
    stores = how.unit * (np.abs(product) + np.abs(value))
    if how.dtype == torch.float64:
        stores = 2 * stores  # the oracle rounds by as much
    return np.asarray(how.accumulation(features) * absolute + stores + steps)


def custom_linear(subject: Subject, frozen: Frozen) -> Any:
    """The target's `CustomLinear` over the case's weight and bias."""
    weight, bias, transposed = frozen.arguments()
    shown = (
        f"CustomLinear(weight {list(weight.shape)}, bias={None if bias is None else list(bias.shape)}, {transposed})"
    )
    with calling(shown):
        return subject.thing(weight, bias, transposed)


def tensors_of(layer: Any, name: str, like: torch.Tensor) -> list[torch.Tensor]:
    """The layer's weight or bias; if it exposes none of that name, all its tensors of that shape."""
    if isinstance(getattr(layer, name, None), torch.Tensor):
        return [getattr(layer, name)]
    held = {t.data_ptr(): t for t in (*layer.parameters(), *layer.buffers()) if t.shape == like.shape}
    return list(held.values())


def forward(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """Run a layer forward once, and require a tensor."""
    with poisoned_memory(), calling("the forward pass"):
        y = layer(x)
    require(isinstance(y, torch.Tensor), f"the forward pass returned {type(y).__name__}: expected a tensor")
    assert isinstance(y, torch.Tensor)
    return y


def backward(y: torch.Tensor, g: torch.Tensor, *, retain_graph: bool = False) -> None:
    """Run backward from an upstream gradient."""
    require(y.requires_grad, "y does not require grad although x does")
    require(y.shape == g.shape, f"y has shape {list(y.shape)}: expected {list(g.shape)}")
    with poisoned_memory(), calling("the backward pass"):
        torch.autograd.backward([y], [g.to(y.dtype)], retain_graph=retain_graph)


def judge_both(layer: Any, frozen: Frozen, x: torch.Tensor | None = None) -> float:
    """Run a layer forward and backward on the case's x and g; judge y and dX."""
    x = (frozen.x if x is None else x).detach().requires_grad_(True)
    y = forward(layer, x)
    backward(y, frozen.g)
    return max(judge(y, frozen.y), judge(x.grad, frozen.dX))
