"""A step of LoraTraining that fails: wrappers, chains of schedulers, simulated noise, and the identity of tensors."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reference
from reference.files.plain_values import flatten, same, unflatten
from reference.files.tensor_file import decode
from reference.files.training_file import ABOUT, STATE
from tests.test_checkpoint import run
from tests.test_checkpoint_runs import write
from tests.test_splitting import LABELS, X, split
from tests.test_splitting import training as small_training


class Wrapper:
    """An optimiser around another one, as libraries for mixed precision or several devices make it."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer, self.fails = optimizer, True

    def step(self) -> None:
        self.optimizer.step()
        if self.fails:
            raise RuntimeError("after the step")


def trained(optimizer: Any, scheduler: Any = None) -> reference.LoraTraining:
    training = small_training()
    made = optimizer([p for p in training.parameters() if p.requires_grad])
    inner = getattr(made, "optimizer", made)
    loss_fn = nn.functional.cross_entropy
    training.update_training_parameters(made, scheduler(inner) if scheduler else None, loss_fn)
    training.toggle_run_optimizer()
    return training


def state(training: reference.LoraTraining) -> dict[str, Any]:
    """What a step may change."""
    model, optimizer = training.inference_model, training.optimizer
    inner: Any = getattr(optimizer, "optimizer", optimizer)
    return {
        "values": {name: value.clone() for name, value in model.state_dict().items()},
        "gradients": {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()},
        "optimizer": copy.deepcopy(inner.state_dict()),
        "random": torch.get_rng_state(),
    }


def test_the_optimiser_that_a_wrapper_holds_is_restored() -> None:
    def wrapped(parameters: list[nn.Parameter]) -> Wrapper:
        return Wrapper(torch.optim.AdamW(parameters, lr=0.1))

    training, plain = trained(wrapped), trained(lambda p: torch.optim.AdamW(p, lr=0.1))
    for round_ in range(2):  # with an empty state, and with moments
        before = state(training)
        training.optimizer.fails = True
        with pytest.raises(RuntimeError, match="after the step"):
            training((X, LABELS))
        assert same(state(training), before), round_
        training.optimizer.fails = False
        training((X, LABELS))
        plain((X, LABELS))
        assert same(state(training), state(plain)), round_


def test_a_chain_of_schedulers_is_restored() -> None:
    def chain(optimizer: torch.optim.Optimizer) -> Any:
        kinds = torch.optim.lr_scheduler
        parts = [kinds.ConstantLR(optimizer, 0.5, total_iters=1), kinds.ExponentialLR(optimizer, 0.5)]
        chained = kinds.SequentialLR(optimizer, parts, milestones=[1])
        step = chained.step

        def failing() -> None:
            step()
            if training.training:
                raise KeyboardInterrupt

        chained.step = failing  # type: ignore[method-assign]
        return chained

    training = trained(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), chain)
    training.train(False)
    training((X, LABELS))
    before, counts = state(training), copy.deepcopy(training.lr_scheduler.state_dict())
    training.train(True)
    with pytest.raises(KeyboardInterrupt):
        training((X, LABELS))
    assert same(state(training), before)
    assert training.lr_scheduler.state_dict() == counts


def test_accumulated_gradients_keep_their_tensors() -> None:
    """Reducers of several devices hold the tensors of the gradients."""
    training = trained(lambda p: torch.optim.SGD(p, lr=0.1))
    training.toggle_run_optimizer(False)
    training((X, LABELS))
    before = {p: p.grad for p in training.parameters() if p.requires_grad}
    values = {p: gradient.clone() for p, gradient in before.items() if gradient is not None}

    def failing(out: Tensor, labels: Tensor) -> Tensor:
        loss = nn.functional.cross_entropy(out, labels)
        training.inference_model[0].lora_A.weight.register_hook(lambda _: 1 / 0)
        return loss

    training.loss_fn = failing
    with pytest.raises(ZeroDivisionError):
        training((X, LABELS))
    assert all(p.grad is gradient for p, gradient in before.items())
    assert all(p.grad is not None and torch.equal(p.grad, value) for p, value in values.items())


def test_simulated_noise_is_drawn_again_after_a_failure() -> None:
    outputs = []
    for fails in (False, True):
        hybrid = split(backend="fast", noise_seed=3)
        training: Any = hybrid.model
        hybrid.set_fhe_mode("simulate")
        if fails:
            position = hybrid.noise_position
            training.loss_fn = lambda out, _: 1 / 0 * out
            with pytest.raises(ZeroDivisionError):
                hybrid((X, LABELS), fhe="simulate")
            assert hybrid.noise_position == position
            training.loss_fn = nn.functional.cross_entropy
        outputs.append(hybrid((X, LABELS), fhe="simulate")[0])
        assert hybrid.noise_position[1] > 0
    assert torch.equal(*outputs)


def test_the_position_of_the_noise_can_be_carried_to_another_model() -> None:
    one, other = split(backend="fast", noise_seed=3), split(backend="fast", noise_seed=4)
    one((X, LABELS), fhe="simulate")
    other.noise_position = one.noise_position
    for hybrid in (one, other):
        hybrid.model.zero_grad()
    assert torch.equal(one((X, LABELS), fhe="simulate")[0], other((X, LABELS), fhe="simulate")[0])
    for position in ((1, -1), (True, 0), 3, (1, 2, 3), None):
        with pytest.raises(ValueError, match=r"noise_position = .*: expected a seed and a number of products"):
            one.noise_position = position  # type: ignore[assignment]


def test_a_file_without_noise_loads_into_a_run_without_noise(tmp_path: Path) -> None:
    """Files of older releases have no such entry."""
    training = run()
    reference.save_training(training, tmp_path, 3)
    tensors, metadata = decode(tmp_path / STATE)
    saved = unflatten(json.loads(metadata[ABOUT]), tensors)
    assert saved.pop("noise") == {}
    kept: dict[str, Tensor] = {}
    write(tmp_path, flatten(saved, "state", kept), kept)
    assert reference.load_training(run(), tmp_path) == 3
    hybrid = split()
    with pytest.raises(ValueError, match="it has optimizer kind"):
        reference.load_training(hybrid.model, tmp_path)  # type: ignore[arg-type]


@pytest.mark.parametrize("noise", [{}, {"2.base_layer.forward_module": [1, -2]}])
def test_noise_of_other_modules_is_refused(tmp_path: Path, noise: dict[str, Any]) -> None:
    hybrid: Any = split()
    reference.save_training(hybrid.model, tmp_path)
    tensors, metadata = decode(tmp_path / STATE)
    saved = unflatten(json.loads(metadata[ABOUT]), tensors)
    saved["noise"] = saved["noise"] | noise if noise else noise
    kept: dict[str, Tensor] = {}
    write(tmp_path, flatten(saved, "state", kept), kept)
    message = r"2\.base_layer\.forward_module: noise_position = \[1, -2\]" if noise else "the noise of remote modules"
    with pytest.raises(ValueError, match=message):
        reference.load_training(hybrid.model, tmp_path)
