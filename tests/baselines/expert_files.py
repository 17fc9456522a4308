"""A right target for files with adapters on experts; a twin changes what is read, written or loaded."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor, nn

import reference
from conformance.clauses.checkpoint.peft_files import REST, config_in, put, tensors_in
from reference.files.expert_files import experts_in
from tests.baselines.expert_modules import RightModules

Tensors = dict[str, Tensor]


class RightFiles(RightModules):
    """A target that saves and loads as the reference does, with a method at each step."""

    kind = reference.GroupedExpertsLoRA

    def save_adapter(self, model: Any, config: Any, path: Any, *, expert_keys: str = "packed") -> None:
        reference.save_adapter(model, config, path, expert_keys=expert_keys)
        values, tensors = config_in(Path(path)), tensors_in(Path(path))
        put(Path(path), self.written_values(values, config), self.written(tensors, model))

    def written_values(self, values: dict[str, Any], config: Any) -> dict[str, Any]:
        """The fields to write."""
        return values

    def written(self, tensors: Tensors, model: nn.Module) -> Tensors:
        """The tensors to write."""
        return tensors

    def load_adapter(self, model: Any, path: Any) -> Any:
        values, tensors = config_in(Path(path)), tensors_in(Path(path))
        with tempfile.TemporaryDirectory() as folder:
            put(Path(folder), self.values(dict(values)), self.tensors(dict(tensors), model))
            if (Path(path) / REST).exists():
                (Path(folder) / REST).write_bytes((Path(path) / REST).read_bytes())
            return self.loaded(model, Path(folder))

    def values(self, values: dict[str, Any]) -> dict[str, Any]:
        """The fields, as they are read."""
        return values

    def tensors(self, tensors: Tensors, model: nn.Module) -> Tensors:
        """The tensors, as they are read."""
        return tensors

    def loaded(self, model: Any, folder: Path) -> Any:
        """Load the files."""
        return reference.load_adapter(model, folder)


def experts(model: nn.Module) -> list[Any]:
    """The modules of experts."""
    return list(experts_in(model).values())


def count(model: nn.Module) -> int:
    """The number of experts of a module."""
    return len(experts(model)[0].down_proj)
