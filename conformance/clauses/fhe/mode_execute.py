"""Mode execute: the arguments that the backend receives, and the same results as in the other modes."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from conformance.cases.case import Space
from conformance.clauses.fhe.key_pairs import known_keys
from conformance.clauses.fhe.mode_simulate import BACKEND
from conformance.clauses.fhe.noise_statistics import judge_columns, judge_rows, spread_of
from conformance.clauses.fhe.oracle import Product, noise_std
from conformance.clauses.fhe.quantized_case import SMALL, Problem, QuantizedCase
from conformance.clauses.fhe.recording_backend import EVALUATION, NOISY, SECRET, Parameters, Recorder
from conformance.clauses.fhe.split_model import Split, whole_noise
from conformance.clauses.hybrid.frozen_layer import backward
from conformance.judgement.judge import judge, worst
from conformance.judgement.outcomes import require
from conformance.specification.clause import clause
from conformance.target.calls import calling
from conformance.target.expected_errors import quiet
from conformance.target.subject import Subject

NEEDS = ("CustomLinear", *BACKEND)


@clause(
    "FHE-EXECUTE",
    sentence="""Mode execute, with real encryption under exact parameters, gives the y and dX of mode disable bit for
    bit.""",
    cases=SMALL.narrowed(m=(1, 2), k=(3, 5), n=(2, 3), lead=("2d", "1d")),
    dtypes=("float32",),
    needs=NEEDS,
    library="concrete_ml_extensions",
    weight=0.34,
)
def test_execute_is_disable(subject: Subject, case: QuantizedCase) -> float | None:
    problem = Problem(case, subject.device)
    split = Split(subject, problem, backend="toy").compile()
    clear = split.both("disable")
    with quiet(), known_keys(subject.thing, split.hybrid):  # the target warns that toy parameters are not secure
        encrypted = split.both("execute")
    for name, a, b in zip(("y", "dX"), clear, encrypted, strict=True):
        wrong = int((a != b).sum())
        require(torch.equal(a, b), f"{name} of mode execute differs from that of disable in {wrong} of {a.numel()}")
    return worst(judge(encrypted[0], problem.y()), judge(encrypted[1], problem.dX()))


def _sized(case: QuantizedCase) -> QuantizedCase:
    """The case with few rows if polynomials are long: each row then takes 4 ms, and each of its columns 14 ms more."""
    return case if case.side == "short" else dataclasses.replace(case, m=min(case.m, 32), n=min(case.n, 4))


REAL = Space(
    QuantizedCase, tame=_sized, m=(128,), k=(2,), n=(8,), n_bits=(8,), values=("grid",), side=("short", "long")
)
SHORT = dataclasses.replace(NOISY["fast"], name="fast, short polynomials: insecure", polynomial_size=256)


def _library(subject: Subject, case: QuantizedCase) -> tuple[Any, Parameters]:
    """The backend and its parameters, with short polynomials if the target accepts other parameters than its own."""
    kind, numbers = (getattr(subject.target, name, None) for name in ("ConcreteBackend", "EncryptionParameters"))
    if case.side == "long" or kind is None or numbers is None:
        return "fast", NOISY["fast"]
    with calling("ConcreteBackend(EncryptionParameters(…))"):
        return kind(numbers(**dataclasses.asdict(SHORT))), SHORT


@clause(
    "FHE-EXECUTE-NOISE",
    sentence="""Under the parameters "fast", and under the same with polynomials of 256 coefficients, the results of
    mode execute differ from those of mode disable by whole units that follow the noise law: mean zero, its standard
    deviation, correlation one half within a row, and independence between rows.""",
    cases=REAL,
    dtypes=("float64",),
    needs=("HybridFHEModel(backend)",),
    library="concrete_ml_extensions",
    weight=0.0625,  # one short case in the quick profile, and one of each kind in the default profile
)
def test_execute_follows_the_law(subject: Subject, case: QuantizedCase) -> float | None:
    problem = Problem(dataclasses.replace(case, side="forward"), subject.device)
    product, (backend, parameters) = problem.forward(), _library(subject, case)
    noise = whole_noise(Split(subject, problem, "linear", backend=backend).compile(), "execute", product.unit)
    sigma, spread = noise_std(parameters, product.weight.values), spread_of(parameters.polynomial_size)
    judge_columns(noise, sigma, spread=spread)
    judge_rows(noise, sigma, spread=spread)
    return None


def _examine(given: tuple[object, ...], product: Product, recorder: Recorder, name: str) -> None:
    """Require that `evaluate` got a ciphertext, the integer weight and the evaluation key, and nothing else."""
    kinds = ", ".join(type(value).__name__ for value in given)
    require(len(given) == 3, f"evaluate got {kinds}: expected a ciphertext, the integer weight and the evaluation key")
    ciphertext, weight, evaluation = given
    require(
        type(ciphertext) is bytes and ciphertext in recorder.messages,
        f"evaluate got a ciphertext ({type(ciphertext).__name__}) that encrypt did not return",
    )
    require(
        isinstance(weight, torch.Tensor) and weight.dtype == torch.int64,
        f"evaluate got as weight {getattr(weight, 'dtype', type(weight).__name__)}: expected torch.int64",
    )
    assert isinstance(weight, torch.Tensor)
    expected = product.weight.values
    require(
        tuple(weight.shape) == expected.shape and bool((weight.cpu().numpy() == expected).all()),
        f"evaluate got another weight {list(weight.shape)} than the integers of the {name} product",
    )
    require(evaluation != SECRET, "evaluate got the secret key")
    require(evaluation == EVALUATION, "evaluate got another value than the evaluation key")


@clause(
    "FHE-EVALUATE",
    sentence="""In mode execute a backend's evaluate receives the ciphertext, the integer weight and the evaluation
    key, and nothing else: no plaintext input and no secret key.""",
    why="evaluate is the part that runs on the server in mode remote.",
    cases=SMALL.narrowed(lead=("2d", "3d"), m=(2, 3, 70)),
    dtypes=("float32",),
    needs=NEEDS,
    weight=0.5,
)
def test_evaluate_sees_no_input(subject: Subject, case: QuantizedCase) -> float | None:
    problem, recorder = Problem(case, subject.device), Recorder(Parameters())
    split = Split(subject, problem, backend=recorder).compile()
    x = problem["x"].detach().requires_grad_(True)
    y = split.forward("execute", x)
    calls = len(recorder.given)
    require(calls > 0, "mode execute did not call evaluate")
    backward(y, problem["g"])
    require(len(recorder.given) > calls, "mode execute did not call evaluate for the backward product")
    forward, back = problem.forward(), problem.backward()
    for i, given in enumerate(recorder.given):
        product, name = (forward, "forward") if i < calls else (back, "backward")
        _examine(given, product, recorder, name)
    encrypted = [np.concatenate(part) for part in _by_width(recorder, calls)]
    for name, seen, product in zip(("x", "g"), encrypted, (forward, back), strict=True):
        require(np.array_equal(seen, product.x.values), f"what was encrypted is not {name} in integers")
    return worst(judge(y, problem.y()), judge(x.grad, problem.dX()))


def _by_width(recorder: Recorder, calls: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The encrypted matrices of the forward pass and of the backward pass."""
    arrays = [q.cpu().numpy() for q in recorder.encrypted]
    return arrays[:calls], arrays[calls:]


@clause(
    "FHE-EMPTY",
    sentence="An empty batch gives an empty result in every mode, execute included.",
    cases=SMALL.narrowed(m=(0,), lead=("2d", "3d"), how=("torch", "disable", "simulate", "execute")),
    dtypes=("float32",),
    needs=NEEDS,
    weight=0.67,
)
def test_empty_batch(subject: Subject, case: QuantizedCase) -> float | None:
    problem = Problem(case, subject.device)
    split = Split(subject, problem, backend=Recorder(Parameters())).compile()
    y, dX = split.both(case.how)
    return worst(judge(y, problem.y()), judge(dX, problem.dX()))
