"""`ForwardBackwardModule`: forward runs one module and backward the other, whatever the two compute."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from conformance.clauses.hybrid.frozen_layer import SMALL, Frozen, FrozenCase, backward, forward
from conformance.judgement.judge import judge, worst
from conformance.judgement.linear_oracle import Expected
from conformance.judgement.outcomes import Violation, require
from conformance.numerics.formats import Array, rounded
from conformance.specification.clause import clause
from conformance.target.calls import calling
from conformance.target.expected_errors import unless_it_raises
from conformance.target.subject import Subject


class Recording(nn.Module):
    """A product that records its inputs and adds one to its result, so that its use shows.

    It computes outside autograd, as a remote module does.
    """

    def __init__(self, matrix: torch.Tensor, offset: float = 1.0) -> None:
        super().__init__()
        self.matrix, self.offset = matrix, offset
        self.given: list[torch.Tensor] = []

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        self.given.append(t.detach().clone())
        with torch.no_grad():
            return (t.to(self.matrix.dtype) @ self.matrix) + self.offset


class Routed:
    """A case run through the target's `ForwardBackwardModule` with recording modules.

    The modules do not compute a linear layer: y = x Wᵀ + 1 and dX = g·V + 1 with V = -W.
    """

    def __init__(self, subject: Subject, case: FrozenCase, *, needs_grad: bool = True) -> None:
        self.frozen = Frozen(case, subject.device)
        self.there = Recording(self.frozen.weight.detach().t())
        self.back = Recording(-self.frozen.weight.detach())
        self.x = self.frozen.x.detach().requires_grad_(needs_grad)
        self.y = forward(lambda x: subject.target.ForwardBackwardModule.apply(x, self.there, self.back), self.x)

    def backward(self) -> None:
        backward(self.y, self.frozen.g)


def stubbed(name: str, product: Array, dtype: torch.dtype) -> Expected:
    """The expected result of a recording module, from the integer product."""
    return Expected(name, rounded(product + 1, dtype), None, dtype)


INTEGERS = SMALL.narrowed(values=("integers",), bias=(False,), transposed=(False,), lead=("2d", "3d"))


def _once(name: str, module: Recording, expected: torch.Tensor, what: str) -> None:
    require(len(module.given) == 1, f"{name} was called {len(module.given)} times: expected once")
    given = module.given[0]
    require(given.shape == expected.shape, f"{name} got {list(given.shape)}: expected {what} {list(expected.shape)}")
    require(torch.equal(given.to(expected.dtype), expected.detach()), f"{name} got other values than {what}")


@clause(
    "HYB-ROUTE-FWD",
    sentence="""Forward calls the forward module exactly once, with x, and returns its result. It does not call the
    backward module, and y requires grad exactly if x does.""",
    cases=INTEGERS.narrowed(training=(True, False)),
    dtypes=("float32", "bfloat16"),
)
def test_routes_forward(subject: Subject, case: FrozenCase) -> float | None:
    routed = Routed(subject, case, needs_grad=case.training)
    _once("forward_module", routed.there, routed.frozen.x, "x")
    require(not routed.back.given, "forward called the backward module")
    require(
        routed.y.requires_grad == case.training,
        f"y.requires_grad is {routed.y.requires_grad}: expected {case.training}, as x",
    )
    return judge(routed.y, stubbed("y", routed.frozen.y.value, routed.frozen.y.dtype))


@clause(
    "HYB-ROUTE-BWD",
    sentence="""Backward calls the backward module exactly once, with the upstream gradient, and returns its result as
    dX. It does not call the forward module again.""",
    cases=INTEGERS,
    dtypes=("float32", "bfloat16"),
)
def test_routes_backward(subject: Subject, case: FrozenCase) -> float | None:
    routed = Routed(subject, case)
    routed.backward()
    _once("backward_module", routed.back, routed.frozen.g, "the upstream gradient")
    require(len(routed.there.given) == 1, "backward called the forward module again")
    return judge(routed.x.grad, stubbed("dX", -routed.frozen.dX.value, routed.frozen.dX.dtype))


@clause(
    "HYB-ROUTE-SWAP",
    sentence="""CustomLinear computes y and dX with its forward_module and backward_module, even after other modules
    are assigned to these attributes.""",
    why="A split model replaces the two modules by remote ones.",
    cases=INTEGERS.narrowed(bias=(False, True), transposed=(False, True)),
    dtypes=("float32", "bfloat16"),
)
def test_replaced_modules(subject: Subject, case: FrozenCase) -> float | None:
    frozen = Frozen(case, subject.device)
    with calling("CustomLinear(weight, bias, weight_transposed)"):
        layer = subject.thing(*frozen.arguments())
    weight = frozen.weight.detach()
    oriented = weight.t() if case.transposed else weight
    there, back = Recording(oriented.t()), Recording(-oriented)
    with calling("assigning forward_module and backward_module"):
        layer.forward_module, layer.backward_module = there, back
    x = frozen.x.detach().requires_grad_(True)
    y = forward(layer, x)
    backward(y, frozen.g)
    _once("the new forward_module", there, frozen.x, "x")
    _once("the new backward_module", back, frozen.g, "the upstream gradient")
    product = frozen.operands.rows("x") @ frozen.operands.values["weight"].T
    return worst(
        judge(y, stubbed("y", product.reshape(frozen.y.value.shape), frozen.y.dtype)),
        judge(x.grad, stubbed("dX", -frozen.dX.value, frozen.dX.dtype)),
    )


class Trainable(nn.Module):
    """A product with parameters that require grad."""

    def __init__(self, matrix: torch.Tensor) -> None:
        super().__init__()
        self.matrix = nn.Parameter(matrix)

    def forward(self, t: torch.Tensor) -> Any:
        return t @ self.matrix


@clause(
    "HYB-ROUTE-ONLY-X",
    sentence="ForwardBackwardModule gives a gradient to x only, not to parameters of the two modules.",
    cases=INTEGERS,
    dtypes=("float32",),
    weight=0.5,
)
def test_routes_to_x_alone(subject: Subject, case: FrozenCase) -> float | None:
    frozen = Frozen(case, subject.device)
    weight = frozen.weight.detach()
    there, back = Trainable(weight.t().clone()), Trainable(weight.clone())
    x = frozen.x.detach().requires_grad_(True)
    y = forward(lambda t: subject.target.ForwardBackwardModule.apply(t, there, back), x)
    backward(y, frozen.g)
    for name, module in (("forward_module", there), ("backward_module", back)):
        require(module.matrix.grad is None, f"a parameter of {name} got a gradient")
    return worst(judge(y, frozen.y), judge(x.grad, frozen.dX))


@clause(
    "HYB-ROUTE-DOUBLE",
    sentence="If the backward module computes outside autograd, as a remote module does, double backward raises.",
    why="A dX without a graph counts as a constant, so its second derivative would silently be wrong.",
    cases=INTEGERS,
    dtypes=("float32",),
    weight=0.5,
)
def test_double_backward_through_remote(subject: Subject, case: FrozenCase) -> float | None:
    routed = Routed(subject, case)
    g = routed.frozen.g.detach().requires_grad_(True)
    first = unless_it_raises(lambda: torch.autograd.grad(routed.y, routed.x, g, create_graph=True))
    if first is None:
        return None
    total = first[0].sum() + 3 * g.sum()
    derivatives = unless_it_raises(lambda: torch.autograd.grad(total, g))
    if derivatives is None:
        return None
    (second,) = derivatives
    raise Violation(
        f"double backward through a backward module outside autograd returned {float(second.flatten()[0]):.6g}, "
        f"taking dX for a constant: expected an error"
    )
