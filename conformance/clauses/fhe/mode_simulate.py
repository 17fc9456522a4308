"""Mode simulate: the integers of mode disable plus noise that follows the law of the encryption."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch

from conformance.clauses.fhe.noise_statistics import judge_columns, judge_row_to_row, judge_rows, judge_unrelated
from conformance.clauses.fhe.oracle import Integers, noise_std
from conformance.clauses.fhe.quantized_case import LAYER, SMALL, Problem, QuantizedCase
from conformance.clauses.fhe.recording_backend import NOISY, OwnLaw, Parameters, Recorder
from conformance.clauses.fhe.split_model import Split, whole_noise
from conformance.judgement.judge import judge
from conformance.judgement.outcomes import require
from conformance.numerics.formats import numbers
from conformance.specification.clause import clause
from conformance.target.expected_errors import refuses
from conformance.target.subject import Subject

BACKEND = ("HybridFHEModel(backend)",)
REFUSED = (ValueError, RuntimeError)


@clause(
    "FHE-SIM-EXACT",
    sentence="""Under exact parameters, which are the default, mode simulate gives the y and dX of mode disable bit
    for bit.""",
    cases=LAYER,
    needs=("CustomLinear",),
    weight=0.5,
)
def test_simulate_is_disable(subject: Subject, case: QuantizedCase) -> float | None:
    problem = Problem(case, subject.device)
    split = Split(subject, problem).compile()
    clear, simulated = split.both("disable"), split.both("simulate")
    for name, a, b in zip(("y", "dX"), clear, simulated, strict=True):
        wrong = int((a != b).sum())
        require(torch.equal(a, b), f"{name} of mode simulate differs from that of disable in {wrong} of {a.numel()}")
    return judge(simulated[0], problem.y())


# so many rows that a target which interprets kernels on a CPU leaves these products to PyTorch
NOISE = SMALL.narrowed(m=(2500,), k=(7, 9, 11), n=(1, 2, 5), bias=(False,), values=("grid",), n_bits=(8, 4))


@clause(
    "FHE-SIM-NOISE",
    sentence="""The noise of mode simulate consists of whole units, has mean zero, and correlates by one half within a
    row. Its standard deviation follows σ² = (ρ·2^(b-m_out))² + (ρ·2^(b-L·B))² + N·(2.845e-15·2^b·√(L·P·4^B/12))² +
    (2^(b-m_in)/√12·‖w_col‖)² with ρ² = (1 + P/2)/12. For a backend with a method noise_std(weight) the noise of each
    column has the standard deviation that the method returns, and no correlation within a row is required.""",
    cases=NOISE.narrowed(how=(*NOISY, "own law")),
    dtypes=("float64",),
    needs=BACKEND,
)
def test_noise_law(subject: Subject, case: QuantizedCase) -> float | None:
    problem = Problem(case, subject.device)
    product = problem.forward()
    backend: Any
    if case.how == "own law":
        backend = OwnLaw(Parameters())
        sigma = numbers(backend.noise_std(torch.from_numpy(product.weight.values)))
    else:
        backend = "fast" if case.how == "fast" else Recorder(NOISY[case.how])
        sigma = noise_std(NOISY[case.how], product.weight.values)
    noise = whole_noise(Split(subject, problem, "linear", backend=backend).compile(), "simulate", product.unit)
    judge_columns(noise, sigma)
    if case.how == "own law":  # it declares standard deviations, but no correlation within a row
        judge_row_to_row(noise, sigma)
    else:
        judge_rows(noise, sigma)
    return None


@clause(
    "FHE-SIM-FRESH",
    sentence="The noise of mode simulate is independent from call to call and from row to row.",
    cases=NOISE.narrowed(how=("from call to call", "from row to row")),
    dtypes=("float64",),
    needs=BACKEND,
    weight=0.34,
)
def test_noise_is_fresh(subject: Subject, case: QuantizedCase) -> float | None:
    problem = Problem(case, subject.device)
    split = Split(subject, problem, "linear", backend="fast").compile()
    unit = problem.forward().unit
    first = whole_noise(split, "simulate", unit)[:, 0]
    require(bool(first.any()), "mode simulate adds no noise under parameters that have some")
    if case.how == "from call to call":
        pair = first, whole_noise(split, "simulate", unit)[:, 0]
    else:
        pair = first[::2], first[1::2]
    require(bool(pair[1].any()), "mode simulate adds no noise in a second call, or in every second row")
    judge_unrelated(*pair, "the noise correlates", case.how)
    return None


def _fill(case: QuantizedCase, problem: Problem, parameters: Parameters) -> None:
    """Give a column of W the largest sum that fits the range, or one more for `above`, and x a row that attains it."""
    levels, low = 2**case.n_bits - 1, -(2 ** (case.n_bits - 1))
    high, limit = levels + low, 2 ** (parameters.bits - 1)
    q = np.zeros((case.n, case.k), dtype=np.int64)
    q[:, 0] = low

    def filled(total: int) -> Integers:  # all other columns get the widest range
        q[:, 1] = high
        for i in range(1, case.k):
            q[0, i] = min(high, max(0, total - (i - 1) * high))
        return q

    total = (limit - 1) // levels
    while levels * total + 8 * float(noise_std(parameters, filled(total)).max()) >= limit:
        total -= 1
    filled(total + (case.how == "above"))
    problem.values["weight"] = np.asarray(q * 0.25, dtype=np.float64)
    problem.values["x"] = np.tile(np.where(q[0] > 0, levels, 0) * 0.5, (case.m, 1))
    with torch.no_grad():
        for name in ("weight", "x"):
            problem[name].copy_(torch.from_numpy(problem.values[name]))


LIMIT = LAYER.narrowed(
    m=(2, 3), k=(17, 33), n=(1, 3), n_bits=(8, 4, 6), bias=(False, True), values=("grid",), x=("packed",)
)


def _parameters(case: QuantizedCase, *, noisy: bool) -> Parameters:
    """Parameters whose range a sum of that size fills, with noise that decides the comparison or without noise."""
    levels, high = 2**case.n_bits - 1, 2 ** (case.n_bits - 1) - 1
    bits = 1 + int(math.log2(levels * (high * (case.k - 1) - 1)))
    if noisy:
        return Parameters(bits=bits, bits_out=bits - 4)
    return Parameters(bits=bits)


@clause(
    "FHE-RANGE",
    sentence="""compile_model refuses a module whose products could wrap, (2ⁿ - 1)·max(Σ q_w⁺, Σ |q_w⁻|) + 8σ ≥
    2^(b-1), and names it. Just below this limit compile_model accepts the module, and its products do not wrap.""",
    why="Integers wrap modulo 2^b without a sign of error.",
    cases=LIMIT.narrowed(how=("below", "above"), g=("packed",), side=("forward", "noisy")),
    dtypes=("float64", "float32"),
    needs=BACKEND,
)
def test_range(subject: Subject, case: QuantizedCase) -> float | None:
    problem = Problem(dataclasses.replace(case, side="forward"), subject.device)
    parameters = _parameters(case, noisy=case.side == "noisy")
    _fill(case, problem, parameters)
    split = Split(subject, problem, "linear", backend=Recorder(parameters))
    if case.how == "above":
        what = f"compile_model(x, n_bits={case.n_bits}) of products that could wrap modulo 2^{parameters.bits}"
        sample = problem["x"].detach()
        refuses(what, lambda: split.hybrid.compile_model(sample, n_bits=case.n_bits), "layer", types=REFUSED)
        return None
    split.compile()
    judged = judge(split.forward("disable"), problem.y())
    simulated = numbers(split.forward("simulate"))
    product = problem.forward()
    units = (simulated - numbers(split.forward("disable"))).reshape(product.raw.shape) / product.unit
    most = 8 * float(noise_std(parameters, product.weight.values).max()) + 1
    require(
        bool((np.abs(units) <= most).all()),
        f"mode simulate is {np.abs(units).max():.4g} units off at the limit of the range: was it wrapped?",
    )
    return judged
