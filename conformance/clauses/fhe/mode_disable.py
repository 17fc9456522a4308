"""Mode disable: y and dX on integers, over sizes, layouts, dtypes and values that are hard to quantise."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from conformance.cases.memory_layout import LAYOUTS
from conformance.clauses.fhe.quantized_case import LAYER, SMALL, Problem, QuantizedCase
from conformance.clauses.fhe.split_model import Holder, Split, linear, run, split
from conformance.clauses.hybrid.frozen_layer import FROZEN, Frozen, FrozenCase, backward
from conformance.judgement.judge import judge, worst
from conformance.judgement.linear_oracle import Expected
from conformance.judgement.outcomes import Inconclusive
from conformance.numerics.formats import format_of, rounded
from conformance.specification.clause import clause
from conformance.target.calls import calling
from conformance.target.subject import Subject

CUSTOM = ("CustomLinear",)


@clause(
    "FHE-TORCH",
    sentence="""In modes torch and calibrate y and dX are those of the float module; in mode torch they are so after
    compile_model too.""",
    cases=FROZEN.narrowed(
        m=(2, 1, 17), k=(3, 1, 17, 33), n=(2, 5, 16), transposed=(False,), how=("torch", "compiled", "calibrate")
    ),
    needs=CUSTOM,
)
def test_torch(subject: Subject, case: FrozenCase) -> float | None:
    frozen = Frozen(case, subject.device)
    with calling("CustomLinear(weight, bias)"):
        model = Holder(subject.target.CustomLinear(*frozen.arguments()))
    hybrid = split(subject, model, ["layer.forward_module", "layer.backward_module"])
    if case.how == "compiled":
        with calling("compile_model(x)"):
            hybrid.compile_model(frozen.x.detach())
    x = frozen.x.detach().requires_grad_(True)
    y = run(hybrid, "calibrate" if case.how == "calibrate" else "torch", x)
    backward(y, frozen.g)
    return worst(judge(y, frozen.y), judge(x.grad, frozen.dX))


@clause(
    "FHE-TORCH-LINEAR",
    sentence="""In mode torch a remote nn.Linear computes y = x Wᵀ + b and gives x the gradient g W, before and after
    compile_model.""",
    why="The source detached x, so no gradient reached the layers before a remote one.",
    cases=FROZEN.narrowed(m=(2, 1, 17), k=(3, 1, 17, 33), n=(2, 5, 16), transposed=(False,), how=("torch", "compiled")),
    dtypes=("float32", "bfloat16"),
    weight=0.5,
)
def test_torch_linear(subject: Subject, case: FrozenCase) -> float | None:
    frozen = Frozen(case, subject.device)
    weight, bias, _ = frozen.arguments()
    hybrid = split(subject, Holder(linear(weight, bias)), ["layer"])
    if case.how == "compiled":
        with calling("compile_model(x)"):
            hybrid.compile_model(frozen.x.detach())
    x = frozen.x.detach().requires_grad_(True)
    y = run(hybrid, "torch", x)
    backward(y, frozen.g)
    return worst(judge(y, frozen.y), judge(x.grad, frozen.dX))


@clause(
    "FHE-DISABLE",
    sentence="""In mode disable y = (raw - [z_w·Σq_x + z_x·Σq_w - z_x·z_w·K])·(s_x·s_w) + b with raw = q_x·q_wᵀ in
    exact integers. x is quantised per row and W per output column, both to n_bits.""",
    cases=LAYER,
)
def test_disable(subject: Subject, case: QuantizedCase) -> float | None:
    problem = Problem(case, subject.device)
    return judge(Split(subject, problem, "linear").compile().forward("disable"), problem.y())


@clause(
    "FHE-DISABLE-DX",
    sentence="""In mode disable dX follows the same formula with g and Wᵀ in place of x and W, without a bias; g and
    Wᵀ are quantised independently of the forward pass.""",
    cases=LAYER.narrowed(side=("backward",)),
    needs=CUSTOM,
    weight=0.5,
)
def test_disable_backward(subject: Subject, case: QuantizedCase) -> float | None:
    problem = Problem(case, subject.device)
    y, dX = Split(subject, problem).compile().both("disable")
    return worst(judge(dX, problem.dX()), judge(y, problem.y()))


@clause(
    "FHE-LEAD",
    sentence="""x may have any number of leading dimensions, including zero and empty ones; y and dX have the same
    leading dimensions.""",
    cases=SMALL.narrowed(m=(2, 0, 3, 17, 1), lead=("1d", "3d", "4d", "2d", "3d")),
    dtypes=("float32", "bfloat16"),
    needs=CUSTOM,
)
def test_leading_dimensions(subject: Subject, case: QuantizedCase) -> float | None:
    problem = Problem(case, subject.device)
    y, dX = Split(subject, problem).compile().both("disable")
    return worst(judge(y, problem.y()), judge(dX, problem.dX()))


@clause(
    "FHE-LAYOUT",
    sentence="y and dX do not depend on the strides of x, g and W.",
    cases=SMALL.narrowed(x=LAYOUTS, g=LAYOUTS, w=LAYOUTS[:-1], lead=("2d", "3d", "4d")),
    dtypes=("float32", "bfloat16"),
    needs=CUSTOM,
)
def test_layouts(subject: Subject, case: QuantizedCase) -> float | None:
    problem = Problem(case, subject.device)
    y, dX = Split(subject, problem).compile().both("disable")
    return worst(judge(y, problem.y()), judge(dX, problem.dX()))


@clause(
    "FHE-CONV1D",
    sentence="Conv1D of transformers, whose weight is [K, N], runs remotely like an nn.Linear.",
    cases=SMALL.narrowed(bias=(True,)),
    dtypes=("float32",),
    library="transformers",
    weight=0.5,
)
def test_conv1d(subject: Subject, case: QuantizedCase) -> float | None:
    problem = Problem(case, subject.device)
    return judge(Split(subject, problem, "conv1d").compile().forward("disable"), problem.y())


@clause(
    "FHE-WIDE",
    sentence="Integer products are exact beyond 2^24, where float32 products are not.",
    cases=LAYER.narrowed(m=(1, 2), k=(1030, 999, 1499), n=(2, 1, 3), n_bits=(8,), values=("wide",)),
    dtypes=("float64",),
    weight=0.5,
)
def test_wide_products(subject: Subject, case: QuantizedCase) -> float | None:
    problem = Problem(case, subject.device)
    if np.abs(problem.forward().raw).max() <= 2**24:
        raise Inconclusive("no product is beyond 2^24")
    return judge(Split(subject, problem, "linear").compile().forward("disable"), problem.y())


@clause(
    "FHE-BOUND",
    sentence="""y and dX differ from those of the float layer by no more than the quantisation bound: each operand is
    off by at most s/2, propagated through the product.""",
    cases=LAYER.narrowed(values=("normal", "far"), side=("forward", "backward")),
    dtypes=("float64",),
    needs=CUSTOM,
)
def test_quantization_bound(subject: Subject, case: QuantizedCase) -> float | None:
    problem = Problem(case, subject.device)
    weight, results = problem.values["weight"], Split(subject, problem).compile().both("disable")
    floats = problem.rows("x") @ weight.T + problem.values.get("bias", 0.0), problem.rows("g") @ weight
    ratios = []
    for name, result, value, product in zip(
        ("y", "dX"), results, floats, (problem.forward(), problem.backward()), strict=True
    ):
        shape = problem.values["x" if name == "dX" else "g"].shape
        expected = Expected(f"{name} in floats", value.reshape(shape), product.bound.reshape(shape), torch.float64)
        # with few bits the bound may include zero; it is then weak, but still valid
        ratios.append(judge(result, dataclasses.replace(expected, certified=False)))
    return worst(*ratios)


@clause(
    "FHE-BITS",
    sentence="""For every n_bits from 2 to 8, 2ⁿ - 1 equal steps span each row and column from its minimum to its
    maximum: if all elements lie on these steps, the result is that of the float layer.""",
    cases=LAYER.narrowed(m=(2, 3), k=(17, 33), n=(5, 16), n_bits=(2, 3, 4, 5, 6, 7, 8), values=("grid",)),
    dtypes=("float64",),
    weight=0.5,
)
def test_number_of_steps(subject: Subject, case: QuantizedCase) -> float | None:
    problem = Problem(case, subject.device)
    # on the grid every value lies on a step, so the float layer's result is expected
    value = problem.rows("x") @ problem.values["weight"].T + problem.values.get("bias", 0.0)
    expected = Expected("y", value.reshape(problem.values["g"].shape), None, torch.float64)
    return judge(Split(subject, problem, "linear").compile().forward("disable"), expected)


@clause(
    "FHE-AMP",
    sentence="""Under autocast y has the dtype of the region, backward works outside the region, and dX has the dtype
    of x.""",
    feature="autocast",
    cases=SMALL.narrowed(values=("grid",)),
    dtypes=("float32",),
    needs=CUSTOM,
    weight=0.5,
)
def test_autocast(subject: Subject, case: QuantizedCase) -> float | None:
    problem = Problem(case, subject.device)
    layer = Split(subject, problem).compile()
    x = problem["x"].detach().requires_grad_(True)
    with torch.autocast(subject.device.partition(":")[0], dtype=torch.bfloat16):
        y = layer.forward("disable", x)
    backward(y, problem["g"])
    expected = problem.forward().expected("y", torch.bfloat16, problem.values["g"].shape)
    problem.values["g"] = rounded(problem.values["g"], torch.bfloat16)
    dX = problem.dX()
    # dX may be cast to the dtype of the region in between
    cast = np.abs(dX.value) * format_of(torch.bfloat16).unit * 1.01
    return worst(judge(y, expected), judge(x.grad, dataclasses.replace(dX, budget=cast)))
