"""The situation of a model, as far as the next operation depends on it, and what an operation on a model is."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from conformance.clauses.life.situation import Operation

Sets = tuple[str, ...]  # names of sets of layers, sorted


@dataclass(frozen=True)
class ModelSituation:
    """What decides whether an operation may follow; tensors and values are in `ModelTruth`.

    Attributes:
        adapted, merged: the sets of layers that have an adapter, and those whose adapter is merged.
        tied: whether the head has the embedding's weight.
        saved: the sets of layers in the file; None before a file is saved.
        copied: whether a copy has been set aside.
        pending: whether a forward pass waits for its backward pass.
    """

    adapted: Sets = ()
    merged: Sets = ()
    tied: bool = False
    saved: Sets | None = None
    copied: bool = False
    pending: bool = False

    def but(self, **changes: Any) -> ModelSituation:
        """This situation with other values for some attributes."""
        return dataclasses.replace(self, **changes)


class ModelOperation(Operation):
    """One thing that happens to a model; `needs` names functions of the target, separated by spaces."""

    def fits(self, now: ModelSituation) -> bool:  # noqa: ARG002
        return True

    def effect(self, now: ModelSituation) -> ModelSituation:
        return now

    def available(self, life: Any) -> bool:
        target = life.subject.target
        if self._known is None or self._known[0] is not target:
            self._known = target, self.works(life)
        return self._known[1]

    _known: tuple[Any, bool] | None = None  # the last target, and whether it has what the operation needs

    def works(self, life: Any) -> bool:
        """Whether the target has what the operation needs; it is asked once."""
        return all(hasattr(life.subject.target, name) for name in self.needs.split())
