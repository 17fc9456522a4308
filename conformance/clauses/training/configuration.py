"""Configuring a LoraTraining: its arguments, their defaults, and the two toggles."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from conformance.clauses.training.closed_form_network import ONE, STEPS, StepCase, mean_of_rows, weighted_sum
from conformance.clauses.training.optimiser_step import judge_step
from conformance.clauses.training.session import Session
from conformance.judgement.judge import judge, worst
from conformance.judgement.outcomes import require
from conformance.specification.clause import clause
from conformance.target.calls import calling
from conformance.target.subject import Subject


def _attributes(session: Session, wanted: dict[str, Any], when: str) -> None:
    """Require that each attribute, if present, holds the value that was set."""
    for name, value in wanted.items():
        held = getattr(session.training, name, value)
        require(held is value or held == value, f"LoraTraining.{name} is {held!r} {when}: expected {value!r}")


@clause(
    "TRN-ARGS",
    sentence="update_training_parameters takes training_args as a dict or as a namespace, with the same effect.",
    cases=STEPS.narrowed(steps=(2, 4), clip=(0.5, 0.25), args=("dict", "namespace")),
    dtypes=ONE,
)
def test_kinds_of_arguments(subject: Subject, case: StepCase) -> float | None:
    session = Session(subject, case).configure().toggle(run_optimizer=True)
    limit = session.max_grad_norm
    assert limit is not None
    given = {
        "optimizer": session.optimizer,
        "lr_scheduler": session.scheduler,
        "gradient_accumulation_steps": case.steps,
        "max_grad_norm": limit,
    }
    _attributes(session, given, f"after training_args as a {case.args}")
    loss, _ = session.call()
    norm = session.problem.norm(case.steps)
    judged = judge(loss, session.problem.loss(divided=case.steps))
    return worst(judged, judge_step(session, factor=min(1.0, limit / (norm + 1e-6))))


ABSENT: dict[str, Any] = {
    "an empty dict": dict,
    "an empty namespace": SimpleNamespace,
    "None": lambda: None,
    "a dict with other keys": lambda: {"learning_rate": 0.1, "weight_decay": 0.0},
    "a namespace with other names": lambda: SimpleNamespace(learning_rate=0.1),
}


@clause(
    "TRN-ARGS-DEFAULT",
    sentence="""Keys missing from training_args have their defaults, 1 accumulation step and no clipping, whatever
    an earlier call set.""",
    cases=STEPS.narrowed(steps=(4,), clip=(0.25,), how=tuple(ABSENT)),
    dtypes=ONE,
)
def test_missing_arguments(subject: Subject, case: StepCase) -> float | None:
    session = Session(subject, case).configure()
    session.configure(training_args=ABSENT[case.how]()).toggle(run_optimizer=True)
    defaults = {"gradient_accumulation_steps": 1, "max_grad_norm": None}
    _attributes(session, defaults, f"after training_args = {case.how}")
    loss, norm = session.call()
    require(norm is None, f"grad_norm is {norm} after training_args = {case.how}: expected None")
    return judge(loss, session.problem.loss())


@clause(
    "TRN-ARGS-NONE",
    sentence="update_training_parameters() without arguments removes the optimiser, the scheduler and loss_fn.",
    cases=STEPS.narrowed(steps=(4,), source=("object",)),
    dtypes=ONE,
    weight=0.5,
)
def test_no_arguments(subject: Subject, case: StepCase) -> float | None:
    session = Session(subject, case).configure(loss_fn=weighted_sum)
    with calling("LoraTraining.update_training_parameters()"):
        session.training.update_training_parameters()
    nothing = {"optimizer": None, "lr_scheduler": None, "loss_fn": None}
    _attributes(session, nothing, "after update_training_parameters()")
    loss, _ = session.toggle(run_optimizer=True).call()
    require(not session.events, f"{', '.join(session.events)} was called after update_training_parameters()")
    return judge(loss, session.problem.loss())


@clause(
    "TRN-ARGS-LOSS",
    sentence="""LoraTraining(model, loss_fn=f) computes the loss with f, until update_training_parameters sets another
    one or none.""",
    cases=STEPS.narrowed(m=(2, 4), source=("object",), how=("f", "another", "none")),
    dtypes=ONE,
    needs=("LoraTraining(loss_fn)",),
    weight=0.5,
)
def test_loss_as_an_argument(subject: Subject, case: StepCase) -> float | None:
    session = Session(subject, case, loss_fn=mean_of_rows)
    if case.how != "f":
        session.configure(loss_fn=weighted_sum if case.how == "another" else None)
    loss, _ = session.call()
    divided = case.m if case.how == "f" else 1  # the model's own loss is the sum
    return worst(judge(loss, session.problem.loss(divided=divided)), session.judge_gradients(divided=divided))


@clause(
    "TRN-ARGS-KEPT",
    sentence="The caller's training_args is not modified, neither by update_training_parameters nor by a later call.",
    cases=STEPS.narrowed(steps=(2, 4), clip=(0.5,)),
    dtypes=ONE,
    weight=0.3,
)
def test_arguments_unmodified(subject: Subject, case: StepCase) -> float | None:
    session = Session(subject, case)
    given = {"gradient_accumulation_steps": case.steps, "max_grad_norm": 0.5, "learning_rate": 0.1}
    before = dict(given)
    session.configure(training_args=given).toggle(run_optimizer=True).call()
    require(given == before, f"training_args is {given} afterwards: it was {before}")
    return None


@clause(
    "TRN-TOGGLE",
    sentence="""toggle_calibrate() and toggle_run_optimizer() switch on, and with False they switch off; both are
    off at first.""",
    cases=STEPS.narrowed(how=("at first", "run_optimizer on", "run_optimizer off", "calibrate on", "calibrate off")),
    dtypes=ONE,
)
def test_toggles(subject: Subject, case: StepCase) -> float | None:
    session = Session(subject, case).configure()
    name, _, switch = case.how.partition(" ")
    if case.how != "at first":
        toggle = f"toggle_{name}"
        with calling(f"LoraTraining.{toggle}()"):
            getattr(session.training, toggle)()
            if switch == "off":
                getattr(session.training, toggle)(False)
    stepping, calibrating = case.how == "run_optimizer on", case.how == "calibrate on"
    _attributes(session, {"run_optimizer": stepping, "calibrate": calibrating}, f"with {case.how}")
    session.call()
    stepped = "optimizer.step" in session.events
    require(stepped == stepping, f"the optimiser {'stepped' if stepped else 'did not step'} with {case.how}")
    left = session.gradient_left()
    kept = not (stepping or calibrating)
    require((left is not None) == kept, f"gradients were {'kept' if left else 'zeroed'} with {case.how}")
    return None


@clause(
    "TRN-OPTIMISER-KEPT",
    sentence="An optimiser made before LoraTraining still trains the adapters, because they stay the same Parameters.",
    cases=STEPS,
    dtypes=ONE,
    weight=0.5,
)
def test_parameters_kept(subject: Subject, case: StepCase) -> float | None:
    session = Session(subject, case).configure()
    now = dict(session.net.named_parameters())
    for name, parameter in session.adapters.items():
        same = now.get(f"{name}.weight") is parameter
        require(same, f"{name}.weight is another Parameter after LoraTraining(model)")
    session.toggle(run_optimizer=True).call()
    for name, parameter in session.adapters.items():
        start = torch.from_numpy(session.problem.weights[f"{name}.weight"]).to(parameter)
        require(not torch.equal(parameter.detach(), start), f"the optimiser's step left {name} as it was")
    return None
