"""The training tasks: a model with adapters in its initial state, and batches, the same for every mode."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PRETRAINING_STEPS = 100
WIDTH, BATCH = 32, 16


@dataclass(frozen=True)
class Task:
    """A training run that is repeated in several modes.

    Attributes:
        name: name of the model.   about: the model and the data in a sentence.
        model: the model with adapters; it is never changed, runs take copies.
        batches: one ``(x, labels)`` for each step.
        loss: the loss of logits and labels.
        learning_rate: learning rate of Adam.   n_bits: bits of inputs and weights in the quantised modes.
        details: sizes, for the report.   seed: seed of the simulated noise.
    """

    name: str
    about: str
    model: nn.Module
    batches: list[tuple[Any, Tensor]]
    learning_rate: float
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy
    n_bits: int = 8
    details: dict[str, Any] = field(default_factory=dict)
    seed: int = 0


def mlp(implementation: Any, steps: int, seed: int) -> Task:
    """Adapters learn digits turned by 90° on a network trained on upright digits.

    Args:
        implementation: a module with PeftConfig and apply_lora_to_linear_modules.
        steps: number of batches.   seed: seed of all random draws.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(digits.images).float() / 16
    labels = torch.from_numpy(digits.target).long()
    half = len(images) // 2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _network()
        _pretrain(model, images[:half].flatten(1), labels[:half])
        config = implementation.PeftConfig(match_all_linear=True, dim=4, alpha=8)
        implementation.apply_lora_to_linear_modules(model, config)
        turned = images[half:].rot90(1, (1, 2)).flatten(1)
        batches = [(turned[i], labels[half:][i]) for i in draws(len(turned), BATCH, steps)]
    return Task(
        name="mlp",
        about=f"MLP 64-{WIDTH}-{WIDTH}-10, frozen after training on upright digits (scikit-learn), LoRA of rank 4 on "
        "each linear layer; trained on digits turned by 90°",
        model=model,
        batches=batches,
        learning_rate=0.02,
        details={"batch": BATCH, "rank": 4, "images": len(turned)},
        seed=seed,
    )


def draws(size: int, batch: int, steps: int) -> list[Tensor]:
    """The indices of each batch: passes over the data, each in a new random order, one after another."""
    passes = -(-batch * steps // size)
    order = torch.cat([torch.randperm(size) for _ in range(passes)])
    return [order[at : at + batch] for at in range(0, batch * steps, batch)]


def _network() -> nn.Sequential:
    layers: list[tuple[str, nn.Module]] = [
        ("first", nn.Linear(64, WIDTH)),
        ("relu", nn.ReLU()),
        ("hidden", nn.Linear(WIDTH, WIDTH)),
        ("relu_2", nn.ReLU()),
        ("last", nn.Linear(WIDTH, 10)),
    ]
    return nn.Sequential(OrderedDict(layers))


def _pretrain(model: nn.Module, x: Tensor, labels: Tensor) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(PRETRAINING_STEPS):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), labels, label_smoothing=0.2)  # smoothing keeps the network able to learn again
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
