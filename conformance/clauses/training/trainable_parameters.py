"""All trainable parameters are trained, in any group of the optimiser, and modules keep their training flags."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from conformance.clauses.training.closed_form_network import ONE, STEPS, Net, Problem, StepCase, weighted_sum
from conformance.clauses.training.session import RATE, Session
from conformance.judgement.judge import judge, worst
from conformance.judgement.linear_oracle import Expected
from conformance.judgement.outcomes import require
from conformance.specification.clause import clause
from conformance.target.calls import calling
from conformance.target.subject import Subject


class Thawed(Problem):
    """A problem whose first layer, which is not replaced, is trained together with the adapters."""

    def net(self, **options: Any) -> Net:
        """The network with these weights."""
        net = super().net(**options)
        net.first.requires_grad_(True)
        return net


def _optimizer(net: nn.Module, how: str) -> torch.optim.SGD:
    """SGD on the adapters and, if `how` is `two groups`, on the first layer as another group."""
    trained = {name: p for name, p in net.named_parameters() if p.requires_grad}
    first = [p for name, p in trained.items() if name.startswith("first")]
    groups = [{"params": [p for name, p in trained.items() if not name.startswith("first")]}]
    return torch.optim.SGD(groups + ([{"params": first}] if how == "two groups" else []), lr=RATE)


@clause(
    "TRN-ALL-TRAINABLE",
    sentence="""All trainable parameters, adapters or not, in any group of the optimiser or in none, get gradients,
    which count in grad_norm, are clipped together and are zeroed; each micro-batch calls the model once.""",
    cases=STEPS.narrowed(
        values=("normal",),
        calls=(4,),
        steps=(2,),
        clip=(0.5,),
        m=(2, 3),
        h=(3, 5),
        k=(2, 4),
        source=("loss_fn",),
        how=("two groups", "one outside"),
    ),
    dtypes=("float64",),
    weight=0.5,
)
def test_all_trainable(subject: Subject, case: StepCase) -> float | None:
    session = Session(subject, case, Thawed(case, subject.device))
    net, plain, limit, ratios = session.net, session.problem.net(), 0.5 * session.problem.norm(), []
    calls: list[int] = []
    net.register_forward_hook(lambda *_: calls.append(1))
    arguments = {"gradient_accumulation_steps": case.steps, "max_grad_norm": limit}
    with calling("update_training_parameters(optimizer, None, loss_fn, training_args)"):
        session.training.update_training_parameters(_optimizer(net, case.how), None, weighted_sum, arguments)
    optimizer = _optimizer(plain, case.how)
    for index in range(case.calls):
        last = index % case.steps == case.steps - 1
        _, norm = session.toggle(run_optimizer=last).call(index)
        require(len(calls) == index + 1, f"{index + 1} micro-batches called the model {len(calls)} times")
        x, labels = session.problem.batch(index)
        torch.autograd.backward([weighted_sum(plain(x), labels) / case.steps])
        if not last:
            require(norm is None, f"grad_norm is {norm} of a call that did not clip: expected None")
            continue
        wanted = np.array(float(torch.nn.utils.clip_grad_norm_(plain.parameters(), limit)))
        require(norm is not None, "grad_norm is None of a call that clipped")
        got = torch.as_tensor(norm).detach().double()
        ratios.append(judge(got, Expected("grad_norm", wanted, wanted * 1e-3, torch.float64)))
        optimizer.step()
        plain.zero_grad()
        left = [name for name, p in net.named_parameters() if p.grad is not None and p.grad.any()]
        require(not left, f"{', '.join(left)} still has its gradient after the step")
    for name, parameter in plain.named_parameters():
        value = parameter.detach().cpu().numpy()
        allowed = 1e-9 * np.abs(value).max() * np.ones_like(value)
        own = session.frozen[name] if name in session.frozen else net.get_parameter(name)
        ratios.append(judge(own.detach(), Expected(f"{name} after {case.calls} calls", value, allowed, torch.float64)))
    return worst(*ratios)


@clause(
    "TRN-MODES",
    sentence="Neither making a LoraTraining nor calling it changes the training flag of any module of the model.",
    cases=STEPS,
    level="SHOULD",  # a training loop may call train(), but loses which modules were in evaluation
    dtypes=ONE,
    weight=0.25,
)
def test_modes(subject: Subject, case: StepCase) -> None:
    problem = Mixed(case, subject.device)
    session = Session(subject, case, problem).configure()
    require(_flags(session.net) == MIXED, f"making a LoraTraining set the training flags to {_flags(session.net)}")
    for switches in ({"calibrate": True}, {"calibrate": False}, {"run_optimizer": True}):
        session.toggle(**switches).call()
        flags = _flags(session.net)
        require(flags == MIXED, f"with {switches} a call set the training flags to {flags}: expected {MIXED}")


MIXED = {"": False, "first": False, "inner": True, "inner.lora_A": True, "outer": False, "outer.lora_B": False}


def _flags(net: nn.Module) -> dict[str, bool]:
    return {name: net.get_submodule(name).training for name in MIXED}


class Mixed(Problem):
    """A problem whose network is in evaluation mode, except for one layer."""

    def net(self, **options: Any) -> Net:
        """The network with these weights."""
        net = super().net(**options).eval()
        net.inner.train()
        return net
