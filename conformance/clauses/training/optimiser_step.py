"""A call with the optimiser on clips, steps the optimiser, steps the scheduler and zeroes gradients, in this order."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from conformance.clauses.training.closed_form_network import EXACT, ONE, STEPS, StepCase, weighted_sum
from conformance.clauses.training.session import RATE, Session
from conformance.isolation.process_state import kept
from conformance.judgement.judge import judge, worst
from conformance.judgement.linear_oracle import Expected
from conformance.judgement.outcomes import require
from conformance.numerics.formats import format_of
from conformance.specification.clause import SHOULD, clause
from conformance.target.subject import Subject


def judge_step(session: Session, *, factor: float = 1.0, rate: float = RATE, **options: Any) -> float | None:
    """Judge every adapter after one SGD step from its initial value, with gradients times a clip factor."""
    problem, ratios = session.problem, []
    for name, gradient in problem.gradients(session.case.steps, **options).items():
        start, unit = problem.weights[f"{name}.weight"], format_of(problem.dtype).unit
        moved = -rate * factor * gradient.value
        value = start + moved
        # stores of the clipped gradient, the product and the sum; the norm's error and two stores of the factor
        relative = 3 * unit + (0.0 if factor == 1 else norm_error(problem.dtype) + 2 * unit)
        allowed = relative * np.abs(moved) + unit * np.abs(value) + format_of(problem.dtype).step
        terms = {"start": start, "step": moved}
        ratios.append(
            judge(session.adapters[name], Expected(f"{name} after a step", value, allowed, problem.dtype, terms))
        )
    return worst(*ratios)


def norm_error(dtype: torch.dtype) -> float:
    """The allowed relative error of a norm: 1e-3, or two stores in the gradients' dtype, per tensor and of the total.

    Only the group `gradnorm` requires that 16-bit gradients are summed in float32, of `clip_grad_norm_` itself.
    """
    return max(1e-3, 2 * format_of(dtype).unit)


def judge_norm(norm: Any, exact: float, dtype: torch.dtype) -> float:
    """Judge a returned grad_norm, a number or a 0-d tensor."""
    require(norm is not None, "grad_norm is None although max_grad_norm is set and the optimiser is on")
    require(
        isinstance(norm, float | torch.Tensor) and torch.as_tensor(norm).ndim == 0,
        f"grad_norm is {norm!r}: expected a number or a 0-d tensor",
    )
    measured = torch.as_tensor(norm).detach().to(torch.float64)
    return judge(measured, Expected("grad_norm", np.array(exact), np.array(exact * norm_error(dtype)), torch.float64))


@clause(
    "TRN-STEP",
    sentence="With the optimiser on, a call makes exactly one optimiser step, with the accumulated gradients.",
    cases=STEPS.narrowed(calls=(1, 2), steps=(1, 2)),
    dtypes=EXACT,
    weight=0.67,
)
def test_step(subject: Subject, case: StepCase) -> float | None:
    session = Session(subject, case).configure()
    for index in range(case.calls):
        session.toggle(run_optimizer=index == case.calls - 1).call(index)
    steps = [event for event in session.events if event.startswith("optimizer")]
    require(steps == ["optimizer.step"], f"one call with the optimiser on made {steps or 'no step'}: expected one step")
    return judge_step(session)


@clause(
    "TRN-SCHEDULE",
    sentence="The scheduler steps once, after the optimiser, so that this step still uses the old learning rate.",
    cases=STEPS,
    dtypes=ONE,
    weight=0.5,
)
def test_scheduler(subject: Subject, case: StepCase) -> float | None:
    session = Session(subject, case).configure().toggle(run_optimizer=True)
    session.call()
    wanted = ["optimizer.step", "lr_scheduler.step"]
    require(session.events == wanted, f"a call made {session.events}: expected {wanted}")
    return judge_step(session)


@clause(
    "TRN-ZERO",
    sentence="After the step, the gradients are zero or None, so that the next step starts from zero gradients.",
    cases=STEPS,
    dtypes=ONE,
    weight=0.5,
)
def test_gradients_zeroed(subject: Subject, case: StepCase) -> float | None:
    session = Session(subject, case).configure().toggle(run_optimizer=True)
    session.call()
    left = session.gradient_left()
    require(left is None, f"{left} still has its gradient after the optimiser's step")
    return None


@clause(
    "TRN-CLIP",
    sentence="With the optimiser on, gradients are clipped by max_grad_norm before the step.",
    cases=STEPS.narrowed(clip=(0.5, 0.25, 0.0625), steps=(1, 2)),
    dtypes=EXACT,
    weight=0.67,
)
def test_clips(subject: Subject, case: StepCase) -> float | None:
    session = Session(subject, case).configure().toggle(run_optimizer=True)
    session.call()
    norm, limit = session.problem.norm(case.steps), session.max_grad_norm
    assert limit is not None
    return judge_step(session, factor=min(1.0, limit / (norm + 1e-6)))


@clause(
    "TRN-NORM",
    sentence="grad_norm is the norm of all accumulated gradients before clipping.",
    cases=STEPS.narrowed(clip=(0.5, 2.0, 0.0625), steps=(1, 2), calls=(1, 2)),
    dtypes=EXACT,
    weight=0.67,
)
def test_grad_norm(subject: Subject, case: StepCase) -> float | None:
    session = Session(subject, case).configure()
    norm: Any = None
    for index in range(case.calls):
        _, norm = session.toggle(run_optimizer=index == case.calls - 1).call(index)
    return judge_norm(norm, session.problem.norm(case.steps), session.problem.dtype)


@clause(
    "TRN-NORM-NONE",
    sentence="Without max_grad_norm, gradients are not clipped and grad_norm is None.",
    cases=STEPS.narrowed(how=("no limit", "no training_args")),
    dtypes=ONE,
    weight=0.5,
)
def test_no_limit(subject: Subject, case: StepCase) -> float | None:
    session = Session(subject, case)
    session.configure() if case.how == "no limit" else session.configure(training_args=None)
    _, norm = session.toggle(run_optimizer=True).call()
    require(norm is None, f"grad_norm is {norm} without max_grad_norm: expected None")
    return judge_step(session)


@clause(
    "TRN-NORM-RANGE",
    sentence="""Gradients of the order of 1e20, whose squares overflow float32, are clipped and not set to zero, and
    grad_norm is their norm.""",
    cases=STEPS.narrowed(clip=(0.5,), source=("loss_fn",)),
    level=SHOULD,
    dtypes=ONE,
    weight=0.5,
)
def test_extreme_gradients(subject: Subject, case: StepCase) -> float | None:
    session, huge = Session(subject, case), 2.0**66
    limit = 0.5 * session.problem.norm()
    session.configure(
        loss_fn=lambda out, labels: weighted_sum(out, labels) * huge,
        training_args={"gradient_accumulation_steps": 1, "max_grad_norm": limit},
    )
    _, norm = session.toggle(run_optimizer=True).call()
    judged = judge_norm(norm, session.problem.norm() * huge, session.problem.dtype)
    return worst(judged, judge_step(session, factor=0.5))


@clause(
    "TRN-NO-OPTIMISER",
    sentence="""With the optimiser on but none set, a call raises nothing, changes no adapter and zeroes the
    gradients; with an optimiser but no scheduler, it steps the optimiser as usual.""",
    cases=STEPS.narrowed(how=("neither", "no scheduler")),
    dtypes=ONE,
    weight=0.5,
)
def test_without_optimizer(subject: Subject, case: StepCase) -> float | None:
    session = Session(subject, case)
    if case.how == "neither":
        session.configure(optimizer=False)
    else:
        session.configure(lr_scheduler=None)
    session.toggle(run_optimizer=True).call()
    left = session.gradient_left()
    require(left is None, f"{left} still has its gradient after a call with the optimiser on")
    if case.how == "no scheduler":
        return judge_step(session)
    for name, parameter in session.adapters.items():
        start = torch.from_numpy(session.problem.weights[f"{name}.weight"]).to(parameter)
        require(torch.equal(parameter.detach(), start), f"{name} changed although there is no optimiser")
    return None


@clause(
    "TRN-LOOP",
    sentence="""Two accumulation windows of micro-batches, each ending with an optimiser step, train the adapters to
    the same values as a plain PyTorch loop.""",
    cases=STEPS.narrowed(values=("normal",), calls=(4,), steps=(2,), clip=(0.0, 0.5), m=(2, 3), h=(3, 5), k=(2, 4)),
    dtypes=("float64",),
    weight=0.5,
)
def test_loop(subject: Subject, case: StepCase) -> float | None:
    session = Session(subject, case).configure()
    plain, limit = session.problem.net(), session.max_grad_norm
    adapters = [plain.get_parameter(f"{name}.weight") for name in session.adapters]
    optimizer = torch.optim.SGD(adapters, lr=RATE)
    for index in range(case.calls):
        last = index % case.steps == case.steps - 1
        session.toggle(run_optimizer=last).call(index)
        x, labels = session.problem.batch(index)
        torch.autograd.backward([weighted_sum(plain(x), labels) / case.steps])
        if last:
            if limit:
                torch.nn.utils.clip_grad_norm_(adapters, limit)
            optimizer.step()
            optimizer.zero_grad()
            optimizer.param_groups[0]["lr"] /= 2
    ratios = []
    for (name, parameter), wanted in zip(session.adapters.items(), adapters, strict=True):
        value = wanted.detach().cpu().numpy()
        allowed = 1e-9 * np.abs(value).max() * np.ones_like(value)
        ratios.append(judge(parameter, Expected(f"{name} after {case.calls} calls", value, allowed, torch.float64)))
    return worst(*ratios)


@clause(
    "TRN-SIDE-GLOBAL",
    sentence="A call changes no setting of the process and, without dropout, no random state.",
    cases=STEPS,
    dtypes=ONE,
    weight=0.25,
)
def test_settings_kept(subject: Subject, case: StepCase) -> float | None:
    session = Session(subject, case).configure().toggle(run_optimizer=True)
    with kept("a call"):
        session.call()
    return None
