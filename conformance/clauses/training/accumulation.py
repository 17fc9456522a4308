"""Several micro-batches without an optimiser step between them: gradients add up; calibration leaves none behind."""

from __future__ import annotations

import dataclasses

import torch

from conformance.clauses.training.closed_form_network import EXACT, ONE, STEPS, Problem, StepCase, mean_of_rows
from conformance.clauses.training.session import Session
from conformance.judgement.judge import judge, worst
from conformance.judgement.outcomes import require
from conformance.specification.clause import clause
from conformance.target.subject import Subject


@clause(
    "TRN-ACCUMULATE",
    sentence="""While the optimiser is off, gradients add up from call to call and are not clipped, grad_norm is
    None, and neither the optimiser nor the scheduler steps.""",
    cases=STEPS.narrowed(calls=(2, 3, 1), steps=(1, 2, 4), clip=(0.0, 0.25)),
    dtypes=EXACT,
)
def test_accumulates(subject: Subject, case: StepCase) -> float | None:
    session = Session(subject, case).configure()
    before = {name: p.detach().clone() for name, p in session.adapters.items()}
    for index in range(case.calls):
        _, norm = session.call(index)
        require(norm is None, f"grad_norm is {norm} although the optimiser is off: expected None")
    require(not session.events, f"{', '.join(session.events)} was called although the optimiser is off")
    for name, parameter in session.adapters.items():
        require(torch.equal(parameter.detach(), before[name]), f"{name} changed although the optimiser is off")
    return session.judge_gradients()


@clause(
    "TRN-BIG-BATCH",
    sentence="""With a loss averaged over rows, N micro-batches of equal size and gradient_accumulation_steps = N
    give the gradient of the one batch that joins them.""",
    cases=STEPS.narrowed(m=(1, 2, 4), steps=(2, 4), source=("loss_fn",)),
    dtypes=EXACT,
    weight=0.67,
)
def test_equals_a_big_batch(subject: Subject, case: StepCase) -> float | None:
    case = dataclasses.replace(case, calls=case.steps)
    session = Session(subject, case).configure(loss_fn=mean_of_rows)
    for index in range(case.calls):
        session.call(index)
    return session.judge_gradients(divided=case.m * case.calls)


@clause(
    "TRN-UNEQUAL",
    sentence="""Each micro-batch adds the gradient of its own loss ÷ gradient_accumulation_steps, whatever the sizes
    of the other micro-batches.""",
    cases=STEPS.narrowed(m=(1, 2, 3), steps=(1, 2, 4)),
    dtypes=EXACT,
    weight=0.67,
)
def test_unequal_micro_batches(subject: Subject, case: StepCase) -> float | None:
    problem = Problem(case, subject.device, rows=(case.m, case.m + 2, 1))
    session = Session(subject, case, problem).configure()
    losses = [session.call(i)[0] for i in range(3)]
    judged = [judge(losses[i], problem.loss(i, divided=case.steps)) for i in range(3)]
    return worst(*judged, session.judge_gradients())


@clause(
    "TRN-CALIBRATE",
    sentence="""While calibrating, a call returns the loss and grad_norm None, leaves no gradient behind, and steps
    neither the optimiser nor the scheduler.""",
    cases=STEPS.narrowed(how=("optimiser on", "optimiser off"), clip=(0.0, 0.25), calls=(1, 2)),
    dtypes=EXACT,
)
def test_calibrate(subject: Subject, case: StepCase) -> float | None:
    session = Session(subject, case).configure()
    session.toggle(calibrate=True, run_optimizer=case.how == "optimiser on")
    before = {name: p.detach().clone() for name, p in session.adapters.items()}
    judged = []
    for index in range(case.calls):
        loss, norm = session.call(index)
        judged.append(judge(loss, session.problem.loss(index)))
        require(norm is None, f"grad_norm is {norm} while calibrating: expected None")
        left = session.gradient_left()
        require(left is None, f"a gradient of {left} is left behind while calibrating")
    require(not session.events, f"{', '.join(session.events)} was called while calibrating")
    for name, parameter in session.adapters.items():
        require(torch.equal(parameter.detach(), before[name]), f"{name} changed while calibrating")
    return worst(*judged)


@clause(
    "TRN-CALIBRATE-END",
    sentence="After calibration, training goes on from zero gradients.",
    cases=STEPS.narrowed(calls=(2,)),
    dtypes=ONE,
    weight=0.5,
)
def test_after_calibration(subject: Subject, case: StepCase) -> float | None:
    session = Session(subject, case).configure().toggle(calibrate=True)
    session.call(0)
    session.toggle(calibrate=False).call(1)
    return session.judge_gradients(only=(1,))
