"""The state that a training step changes, kept so that a step that fails can be undone."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .files.plain_values import same_bits
from .sharded import is_sharded

Restore = Callable[[], None]


class StepState:
    """The state before a training step: `restore` returns to it, with the same tensors and the same bits.

    It holds the gradients, the random states of Python, NumPy, torch and (if in use) CUDA, the position of simulated
    noise, and the model's buffers that a step may change: persistent floating-point buffers and counters.

    Args:
        model: the model of the step.
    """

    def __init__(self, model: nn.Module) -> None:
        self._undo: list[Restore] = [*_random_states(), _gradients(model)]
        self._undo += [_tensor(buffer) for buffer in _changing_buffers(model)]
        self._undo += [_noise(module) for module in model.modules() if hasattr(module, "noise_position")]

    def add_steppers(self, model: nn.Module, *steppers: Any) -> None:
        """Also keep the trainable parameters of a model, and optimisers and schedulers; None is ignored."""
        known: set[int] = set()
        self._undo += _kept([parameter for parameter in model.parameters() if parameter.requires_grad], known)
        for stepper in steppers:
            self._undo += _kept(getattr(stepper, "__dict__", None), known)

    def restore(self) -> None:
        """Return to the state before the step."""
        for undo in reversed(self._undo):
            undo()


def _random_states() -> list[Restore]:
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    restores: list[Restore] = [
        lambda: random.setstate(python),
        lambda: np.random.set_state(numpy),
        lambda: torch.set_rng_state(cpu),
    ]
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        cuda = torch.cuda.get_rng_state_all()
        restores.append(lambda: torch.cuda.set_rng_state_all(cuda))
    return restores


def _gradients(model: nn.Module) -> Restore:
    """The gradients of all parameters; backward adds to the existing tensors in place, so they are copied."""
    before = [(p, p.grad, None if p.grad is None else p.grad.detach().clone()) for p in model.parameters()]

    def restore() -> None:
        for parameter, gradient, values in before:
            parameter.grad = gradient
            if gradient is not None and values is not None:
                _copy(gradient, values)

    return restore


def _changing_buffers(model: nn.Module) -> list[Tensor]:
    """The persistent buffers that a forward pass may change: statistics and counters, not quantised weights."""
    found: dict[int, Tensor] = {}
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is None or name in module._non_persistent_buffers_set:
                continue
            if buffer.is_floating_point() or buffer.ndim == 0:
                found[id(buffer)] = buffer
    return list(found.values())


def _noise(module: Any) -> Restore:
    position = module.noise_position

    def restore() -> None:
        module.noise_position = position

    return restore


def _tensor(tensor: Tensor) -> Restore:
    values = tensor.detach().clone()
    return lambda: _copy(tensor, values)


@torch.no_grad()
def _copy(tensor: Tensor, values: Tensor) -> None:
    # A write without need would look like a change to the remote modules of a frozen weight.
    if is_sharded(tensor) or tensor.layout != torch.strided or not same_bits(tensor, values):
        tensor.copy_(values)


def _kept(value: Any, known: set[int]) -> list[Restore]:
    """The functions that restore a value in place, with all that it contains.

    They restore tensors, dicts, lists, and the attributes of objects with a state_dict, such as the optimiser that a
    wrapper holds; modules and other objects are only referred to.
    """
    if id(value) in known:
        return []
    known.add(id(value))
    if isinstance(value, Tensor):
        return [_tensor(value)]
    if isinstance(value, tuple):
        return _all_kept(value, known)
    if isinstance(value, list):
        entries = list(value)
        return [*_all_kept(entries, known), lambda: value.__setitem__(slice(None), entries)]
    if hasattr(value, "state_dict") and hasattr(value, "__dict__") and not isinstance(value, nn.Module | type):
        value = vars(value)
    if not isinstance(value, dict):
        return []
    items = dict(value)
    return [*_all_kept(items.values(), known), lambda: _refill(value, items)]


def _all_kept(values: Any, known: set[int]) -> list[Restore]:
    return [restore for value in values for restore in _kept(value, known)]


def _refill(mapping: Any, items: dict[Any, Any]) -> None:
    mapping.clear()
    mapping.update(items)
