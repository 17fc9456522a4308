"""The loader of a target: `load_adapter_deltas(model, path)`, or `load_adapter(model, path)`, which works in place."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from torch import nn

from conformance.adapters.catalogue import BY_NAME
from conformance.adapters.model_changes import changes_of
from conformance.errors import TargetError, UsageError, matched
from conformance.target.target import Target

NAMES = ("load_adapter_deltas", "load_adapter")


@dataclass(frozen=True)
class Loader:
    """A target that loads adapters.

    Attributes:
        target: the target.   absent: by golden adapter the reason why the target is not asked to load it.
    """

    target: Target
    absent: dict[str, str]

    @classmethod
    def load(cls, spec: str) -> Loader:
        """Import a target.

        Raises:
            TargetError: if it cannot be imported, or has no loader; if its declaration names unknown adapters.
        """
        target = Target.load(spec)
        if not any(hasattr(target.thing, name) for name in NAMES):
            raise TargetError(
                f"{spec} loads no adapters: expected {' or '.join(f'{name}(model, path)' for name in NAMES)}"
            )
        reasons: dict[str, str] = target.declared.get("adapters", {})
        try:
            matched(reasons, BY_NAME, f"adapter in {spec}.CONFORMANCE['adapters']")
        except UsageError as error:
            raise TargetError(str(error)) from error
        absent = {name: reason for pattern, reason in reasons.items() for name in BY_NAME if fnmatchcase(name, pattern)}
        return cls(target, absent)

    def changes(self, model: nn.Module, path: Path) -> Any:
        """What the target says that an adapter changes, by parameter of the model."""
        deltas = getattr(self.target.thing, NAMES[0], None)
        if deltas is not None:
            return deltas(model, str(path))
        before = copy.deepcopy(model)
        self.target.thing.load_adapter(model, str(path))
        return changes_of(before, model.eval())
