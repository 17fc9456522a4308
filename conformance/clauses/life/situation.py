"""The situation of a layer, as far as the next operation depends on it, and what an operation is."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

ON, OFF = "on", "off"
DEEPEST = 2  # autocast regions inside each other


@dataclass(frozen=True)
class Situation:
    """What decides whether an operation may follow; tensors and values are in `Truth`.

    A further kind of base weight, such as a packed one, is one more value of `base`.

    Attributes:
        merged: whether the update is merged into the weight.
        pending: whether a forward pass waits for its backward pass.
        regions: the autocast regions around the layer, each `on` or `off`, the innermost last.
        base: `plain`, or `parametrised` by torch.nn.utils.parametrize.
        unguarded: whether the adapter may change while it is merged.
        changing: whether tensors may change in place inside an autocast region.
    """

    merged: bool = False
    pending: bool = False
    regions: tuple[str, ...] = ()
    base: str = "plain"
    unguarded: bool = False
    changing: bool = False

    @property
    def autocast(self) -> bool:
        """Whether autocast acts."""
        return self.regions[-1:] == (ON,)

    @property
    def plain(self) -> bool:
        """Whether the layer is unmerged, outside regions, and its weight is a Parameter."""
        return not self.merged and not self.regions and self.base == "plain"

    def but(self, **changes: Any) -> Situation:
        """This situation with other values for some attributes."""
        return dataclasses.replace(self, **changes)


class Operation:
    """One thing that happens to a layer: when it may, its call on the target, and its effect on the truth.

    A subclass writes the call as lines of Python, which `Lived.run` runs on the target; a reproducer prints the same
    lines. The clauses judge the layer after every operation. Other lives have situations of their own.

    Attributes:
        name: the word for it in a case.
        keeps_graph: whether a forward pass from before it may have its backward pass after it.
        needs: methods of the layer, with spaces between, without which the operation is left out.
    """

    name = ""
    keeps_graph = False
    needs = ""

    def fits(self, now: Any) -> bool:  # noqa: ARG002
        """Whether the operation may come next."""
        return True

    def effect(self, now: Any) -> Any:
        """The situation after it, apart from the pending forward pass."""
        return now

    def after(self, now: Any) -> Any:
        """The situation after it."""
        then = self.effect(now)
        return then if self.keeps_graph else then.but(pending=False)

    def available(self, life: Any) -> bool:
        """Whether the target has what the operation needs."""
        return all(hasattr(life.layer, name) for name in self.needs.split())

    def act(self, life: Any) -> None:
        """Run the call on the target, and change the truth."""
        raise NotImplementedError
