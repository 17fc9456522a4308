"""The loss of one call: its value, its source, the backward pass, and losses that are refused."""

from __future__ import annotations

from collections import namedtuple
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from conformance.clauses.training.closed_form_network import EXACT, ONE, STEPS, StepCase, weighted_sum
from conformance.clauses.training.session import Session
from conformance.judgement.judge import judge, worst
from conformance.judgement.outcomes import require
from conformance.specification.clause import SHOULD, clause
from conformance.target.expected_errors import refuses
from conformance.target.subject import Subject


@clause(
    "TRN-LOSS",
    sentence="forward((x, labels)) returns (loss, grad_norm), where loss = loss_fn(model(x), labels).",
    cases=STEPS.narrowed(source=("loss_fn",)),
    dtypes=EXACT,
)
def test_loss(subject: Subject, case: StepCase) -> float | None:
    session = Session(subject, case).configure()
    return judge(session.call()[0], session.problem.loss())


@clause(
    "TRN-DIVIDE",
    sentence="The loss, and with it every gradient, is divided by gradient_accumulation_steps.",
    cases=STEPS.narrowed(steps=(2, 4, 1, 8)),
    dtypes=EXACT,
)
def test_divided(subject: Subject, case: StepCase) -> float | None:
    session = Session(subject, case).configure()
    loss = judge(session.call()[0], session.problem.loss(divided=case.steps))
    return worst(loss, session.judge_gradients())


@clause(
    "TRN-BACKWARD",
    sentence="""forward runs backward: afterwards every adapter has its whole gradient, including the part that
    passes through replaced base layers.""",
    cases=STEPS,
    dtypes=EXACT,
)
def test_backward(subject: Subject, case: StepCase) -> float | None:
    session = Session(subject, case).configure()
    session.call()
    return session.judge_gradients()


@clause(
    "TRN-FLOAT",
    sentence="""With values that round, too, the loss and gradients are those of the model before its layers were
    replaced, divided by gradient_accumulation_steps.""",
    cases=STEPS.narrowed(values=("normal",), steps=(1, 3), m=(2, 1, 5, 9), k=(2, 4, 9), h=(3, 5, 12), n=(2, 3, 7)),
    dtypes=("float64", "float32"),
)
def test_in_float(subject: Subject, case: StepCase) -> float | None:
    session = Session(subject, case).configure()
    loss = judge(session.call()[0], session.problem.loss(divided=case.steps))
    return worst(loss, session.judge_gradients())


@clause(
    "TRN-REQUIRES-GRAD",
    sentence="The returned loss is a scalar tensor that still requires grad and has a grad_fn.",
    why="A detached loss that is forced to require grad hides that nothing is trained.",
    cases=STEPS,
    dtypes=ONE,
    weight=0.5,
)
def test_loss_requires_grad(subject: Subject, case: StepCase) -> float | None:
    loss, _ = Session(subject, case).configure().call()
    require(isinstance(loss, torch.Tensor), f"the loss is a {type(loss).__name__}: expected a tensor")
    require(loss.requires_grad, "the returned loss does not require grad")
    require(loss.grad_fn is not None, "the returned loss requires grad by force: it has no graph behind it")
    return None


@clause(
    "TRN-FROZEN",
    sentence="Frozen parameters get no gradient, keep their values and stay frozen, with or without an optimiser step.",
    cases=STEPS.narrowed(how=("step", "accumulate")),
    dtypes=ONE,
    weight=0.5,
)
def test_frozen_parameters(subject: Subject, case: StepCase) -> float | None:
    session = Session(subject, case).configure().toggle(run_optimizer=case.how == "step")
    before = {name: p.detach().clone() for name, p in session.frozen.items()}
    session.call()
    for name, parameter in session.frozen.items():
        require(parameter.grad is None, f"{name} is frozen and got a gradient")
        require(not parameter.requires_grad, f"{name} was frozen and now requires grad")
        require(torch.equal(parameter.detach(), before[name]), f"{name} is frozen and was modified")
    return None


@clause(
    "TRN-MODEL-LOSS",
    sentence="Without loss_fn, the model is called with the labels, and the loss is the .loss of its output.",
    cases=STEPS.narrowed(source=("object",)),
    dtypes=EXACT,
    weight=0.67,
)
def test_loss_of_the_model(subject: Subject, case: StepCase) -> float | None:
    session = Session(subject, case).configure()
    return worst(judge(session.call()[0], session.problem.loss()), session.judge_gradients())


@clause(
    "TRN-MODEL-LOSS-KINDS",
    sentence="The model's loss may also be output['loss'], or the first element of a tuple that the model returns.",
    cases=STEPS.narrowed(source=("dict", "tuple")),
    level=SHOULD,
    dtypes=ONE,
)
def test_kinds_of_model_loss(subject: Subject, case: StepCase) -> float | None:
    session = Session(subject, case).configure()
    return worst(judge(session.call()[0], session.problem.loss()), session.judge_gradients())


Scored = namedtuple("Scored", ["score"])
LOSSLESS: dict[str, Any] = {
    "an object without .loss": lambda out: SimpleNamespace(logits=out),
    "an object with .loss = None": lambda out: SimpleNamespace(loss=None, logits=out),
    "a dict without 'loss'": lambda out: {"logits": out},
    "a named tuple without .loss": lambda out: Scored(out.sum()),
    "its logits": lambda out: out,
    "None": lambda _out: None,
}


@clause(
    "TRN-NO-LOSS",
    sentence="""Without loss_fn, a model that returns no loss raises a ValueError whose message begins with `The
    model did not return a loss`.""",
    cases=STEPS.narrowed(source=("object",), how=tuple(LOSSLESS)),
    dtypes=ONE,
)
def test_no_loss(subject: Subject, case: StepCase) -> float | None:
    session = Session(subject, case).configure()
    forward = session.net.forward

    def lossless(x: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        return LOSSLESS[case.how](forward(x, labels=labels).logits)

    session.net.forward = lossless
    _begins(
        f"LoraTraining((x, labels)) with a model that returns {case.how}",
        lambda: session.training(session.problem.batch()),
        "The model did not return a loss",
    )
    return None


def _begins(what: str, call: Any, beginning: str) -> None:
    """Require a ValueError whose message starts with `beginning`."""
    caught: list[str] = []

    def noted() -> Any:
        try:
            return call()
        except ValueError as error:
            caught.append(str(error))
            raise

    refuses(what, noted, beginning)
    require(caught[0].startswith(beginning), f"{what} raised ValueError: {caught[0][:200]!r}: expected {beginning!r}")


def _leaf(out: torch.Tensor) -> torch.Tensor:
    return torch.ones((), dtype=out.dtype, device=out.device, requires_grad=True)


DETACHED: dict[str, Any] = {
    "detached from the model": lambda out, labels: weighted_sum(out.detach(), labels),
    "forced to require grad": lambda out, labels: weighted_sum(out.detach(), labels).requires_grad_(True),
    "of a leaf beside the model": lambda out, labels: weighted_sum(out.detach(), labels) * _leaf(out),
    "a constant": lambda out, _labels: torch.zeros((), dtype=out.dtype, device=out.device),
}


@clause(
    "TRN-DETACHED",
    sentence="""A loss that depends on no trainable parameter of the model raises a ValueError or RuntimeError, even
    if it requires grad, instead of a step that trains nothing.""",
    cases=STEPS.narrowed(source=("loss_fn",), how=(*DETACHED, "of a frozen model", "of x alone")),
    dtypes=ONE,
)
def test_detached_loss(subject: Subject, case: StepCase) -> float | None:
    session = Session(subject, case)
    x, labels = session.problem.batch()
    session.configure(loss_fn=DETACHED.get(case.how, weighted_sum))
    if case.how in ("of a frozen model", "of x alone"):
        session.net.requires_grad_(False)
    if case.how == "of x alone":
        x = x.requires_grad_(True)
    refuses(
        f"LoraTraining((x, labels)) with a loss {case.how}",
        lambda: session.training((x, labels)),
        types=(ValueError, RuntimeError),
    )
    return None


BATCHES: dict[str, Any] = {
    "(x, labels)": lambda x, labels: (x, labels),
    "({'x': x}, labels)": lambda x, labels: ({"x": x}, labels),
    "{'x': x, 'labels': labels}": lambda x, labels: {"x": x, "labels": labels},
    "[x, labels]": lambda x, labels: [x, labels],
}


def _parts(batch: Any) -> list[tuple[str, Any]]:
    """Every container and tensor of a batch, with its place."""
    if isinstance(batch, dict):
        return [("dict", sorted(batch)), *((f"[{k!r}]{p}", v) for k, b in batch.items() for p, v in _parts(b))]
    if isinstance(batch, tuple | list):
        return [("length", len(batch)), *((f"[{i}]{p}", v) for i, b in enumerate(batch) for p, v in _parts(b))]
    return [("", batch)]


@clause(
    "TRN-BATCH",
    sentence="""A call never modifies the caller's batch, neither its tensors nor a dict or list that holds them,
    even if it refuses the batch.""",
    cases=STEPS.narrowed(how=tuple(BATCHES)),
    dtypes=ONE,
)
def test_batch_unmodified(subject: Subject, case: StepCase) -> float | None:
    session = Session(subject, case).configure().toggle(run_optimizer=True)
    made = BATCHES[case.how]
    batch, same = made(*session.problem.batch()), made(*session.problem.batch())
    held = _parts(batch)
    try:
        session.call(batch=batch)
    except Exception:
        if case.how == "(x, labels)":
            raise
        # a batch of another form may be refused, but must not be modified then either
    now = _parts(batch)
    require([p for p, _ in now] == [p for p, _ in held], f"the batch {case.how} has lost or gained entries")
    for (place, value), (_, before), (_, twin) in zip(now, held, _parts(same), strict=True):
        unchanged = value == twin if not isinstance(value, torch.Tensor) else value is before and _equal(value, twin)
        require(unchanged, f"batch{place} of the batch {case.how} was modified")
    return None


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a.detach(), b) and a.requires_grad == b.requires_grad


@clause(
    "TRN-MODULE",
    sentence="""LoraTraining is an nn.Module whose inference_model is the model it was given, and whose parameters
    include the adapters.""",
    cases=STEPS,
    dtypes=ONE,
    weight=0.2,
)
def test_module(subject: Subject, case: StepCase) -> float | None:
    session = Session(subject, case)
    require(isinstance(session.training, nn.Module), f"LoraTraining is a {type(session.training).__name__}, no module")
    model = getattr(session.training, "inference_model", session.net)
    require(model is session.net, "LoraTraining.inference_model is not the model it was given")
    held = {id(p) for p in session.training.parameters()}
    for name, parameter in session.adapters.items():
        require(
            id(parameter) in held,
            f"{name} is not among LoraTraining's parameters: an optimiser made before would train another tensor",
        )
    return None


@clause(
    "TRN-DOC",
    sentence="The docstring of LoraTraining or of its forward says that a call runs backward.",
    cases=STEPS,
    level=SHOULD,
    dtypes=ONE,
    weight=0.1,
)
def test_docstring(subject: Subject, case: StepCase) -> float | None:
    del case
    said = f"{getattr(subject.thing, '__doc__', '')} {getattr(subject.thing.forward, '__doc__', '')}"
    require("backward" in said, "neither LoraTraining's nor forward's docstring says that a call runs backward")
    return None
