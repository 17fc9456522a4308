"""The case and the situation of a training run, and what an operation on a run is."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from conformance.clauses.life.life_case import LifeCase
from conformance.clauses.life.situation import Operation


@dataclass(frozen=True)
class RunCase(LifeCase):
    """A training run of a network with k features and n outputs, whose adapters have rank r.

    Fields:
        dropout: of the adapters.
        optimizer: `sgd`, `momentum`, `adam`, `adamw`.   flag: `plain`, or torch's `foreach` or `fused`.
        groups: the number of parameter groups.   scheduler: `none`, `exponential`, `steps`.
        steps: gradient_accumulation_steps.   clip: max_grad_norm; 0 for none.
        static: whether a split model quantises over the ranges that it has seen when it was compiled.
    """

    optimizer: str = "sgd"
    flag: str = "plain"
    groups: int = 1
    scheduler: str = "none"
    steps: int = 1
    clip: float = 0.0
    static: bool = False


@dataclass(frozen=True)
class Saved:
    """A saved run: its mode, and whether the present optimiser, scheduler and split are still those it was saved of.

    Attributes:
        frozen: whether an adapter did not require grad; the file lacks that one.
    """

    mode: str
    fits: bool = True
    frozen: bool = False


@dataclass(frozen=True)
class RunSituation:
    """What decides whether an operation on a run may follow.

    Attributes:
        mode: the mode of the split model; empty where the model is not split.
        saved: the saved run, or None.
        frozen: whether an adapter does not require grad.
    """

    mode: str = ""
    saved: Saved | None = None
    frozen: bool = False

    def but(self, **changes: Any) -> RunSituation:
        """This situation with other values for some attributes."""
        return dataclasses.replace(self, **changes)

    def with_others(self) -> RunSituation:
        """This situation with objects that a saved run does not fit."""
        return self.but(saved=self.saved and dataclasses.replace(self.saved, fits=False))


class RunOperation(Operation):
    """One thing that happens to a training run.

    Attributes:
        needs: public names of the target without which the operation is left out.
        trains: whether it makes a call itself; any other operation is followed by one.
    """

    trains = False

    def effect(self, now: RunSituation) -> RunSituation:
        """The situation after it."""
        return now

    def after(self, now: RunSituation) -> RunSituation:
        """The situation after it."""
        return self.effect(now)

    def available(self, life: Any) -> bool:
        """Whether the target has what the operation needs."""
        return all(life.has(name) for name in self.needs.split())
