"""What must hold of a training run after every operation: what a call returns, its values, its state."""

from __future__ import annotations

import torch

from conformance.clauses.life.run_life import RunLife
from conformance.clauses.life.run_truth import ADAPTERS
from conformance.clauses.training.optimiser_step import norm_error


def judge_results(life: RunLife) -> None:
    """Judge the loss and grad_norm that a call has returned, and the output of an evaluation."""
    if life.returned is not None:
        loss, norm = life.returned
        life.near("loss.detach()", loss, "the loss")
        life.require("loss.requires_grad", "the loss does not require grad")
        if norm is None:
            life.require("norm is None", "grad_norm is not None, although the call did not clip")
        else:
            life.near(
                "torch.as_tensor(norm, dtype=torch.float64).detach()", norm, "grad_norm", norm_error(torch.float64)
            )
    if life.output is not None:
        life.near("out", life.output, "the output")
    life.returned = life.output = None


def judge_state(life: RunLife) -> None:
    """Judge adapters, gradients, optimiser, scheduler, settings, switches, modes, and the network's other tensors."""
    truth = life.truth
    life.run("state = net.state_dict()")
    life.all_near([*_values(life), *_rates(life), *_moments(life)])
    settings = {
        "gradient_accumulation_steps": truth.steps,
        "max_grad_norm": truth.max_norm,
        "run_optimizer": truth.run_optimizer,
        "calibrate": truth.calibrate,
        "training": truth.training,
    }
    life.require_all([(f"training.{name} == {value}", f"{name} is not {value}") for name, value in settings.items()])
    if truth.scheduler is not None:
        count = truth.scheduler.count
        life.require(f"scheduler.last_epoch == {count}", f"the scheduler's count is not {count}")


def _values(life: RunLife) -> list[tuple[str, object, str]]:
    """The network's tensors and the accumulated gradients; where none have accumulated, there are none."""
    truth, found, absent = life.truth, [], []
    for name, value in truth.values.items():
        tensor = f'net.get_parameter("{name}.weight")'
        if name not in ADAPTERS:
            found.append((f'torch.as_tensor(state["{name}"], dtype=torch.float64)', value, name))
            continue
        found.append((f"{tensor}.detach()", value, name))
        if name in truth.gradients:
            found.append((f"{tensor}.grad", truth.gradients[name], f"the gradient of {name}"))
        else:
            none = f"{tensor}.grad is None or not {tensor}.grad.any()"
            absent.append((none, f"{name} has a gradient, although none has accumulated"))
        grad = name not in truth.frozen
        absent.append(
            (f"{tensor}.requires_grad is {grad}", f"{name} {'does not require' if grad else 'requires'} grad")
        )
    life.require_all(absent)
    return found


def _rates(life: RunLife) -> list[tuple[str, object, str]]:
    """The learning rates; the number of parameters in each group is required to be right."""
    groups = life.truth.optimiser.groups
    sizes = [len(group.names) for group in groups]
    life.require(
        f'[len(group["params"]) for group in optimizer.param_groups] == {sizes}',
        f"the optimiser's groups do not have {' and '.join(map(str, sizes))} parameters",
    )
    rate = 'torch.tensor(float(optimizer.param_groups[{}]["lr"]), dtype=torch.float64)'
    return [(rate.format(i), group.lr, f"the learning rate of group {i}") for i, group in enumerate(groups)]


def _moments(life: RunLife) -> list[tuple[str, object, str]]:
    """The optimiser's state of each adapter; before its first step there is none."""
    optimiser, found, needed = life.truth.optimiser, [], []
    for name in ADAPTERS:
        held = f'optimizer.state[net.get_parameter("{name}.weight")]'
        for key, value in optimiser.state.get(name, {}).items():
            needed.append((f'"{key}" in {held}', f"the optimiser has no {key} of {name}"))
            found.append((f'torch.as_tensor({held}["{key}"], dtype=torch.float64)', value, f"{key} of {name}"))
        if not optimiser.state.get(name):
            none = f'{held}.get("momentum_buffer") is None and "exp_avg" not in {held}'
            needed.append((none, f"the optimiser has a state of {name}, although it has not stepped"))
    life.require_all(needed)
    return found
