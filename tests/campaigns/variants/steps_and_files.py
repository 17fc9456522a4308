"""Choices of steps and files: another way to undo a failed step, and to read a file on several ranks."""

from __future__ import annotations

import copy
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import reference
from tests.baselines.distributed import Right as RightRanks
from tests.baselines.training import Right, Step


class UndoesByStateDicts:
    """A target whose failed steps are undone through state_dicts and new gradient tensors, with an error of its own."""

    LinearLoRA = reference.LinearLoRA

    class LoraTraining(Step):
        replace_layers_with_custom = staticmethod(Right().LoraTraining.replace_layers_with_custom)

        def taken(self) -> Any:
            parts = [self.optimizer, self.lr_scheduler]
            model = self.inference_model
            return {
                "model": copy.deepcopy(model.state_dict()),
                "gradients": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
                "steppers": [copy.deepcopy(p.state_dict()) if hasattr(p, "state_dict") else None for p in parts],
                "random": (random.getstate(), np.random.get_state(), torch.get_rng_state()),
            }

        def undo(self, before: Any) -> None:
            model = self.inference_model
            model.load_state_dict(before["model"])
            for parameter, gradient in zip(model.parameters(), before["gradients"], strict=True):
                parameter.grad = gradient
            for part, state in zip((self.optimizer, self.lr_scheduler), before["steppers"], strict=True):
                if state is not None:
                    part.load_state_dict(state)
            python, numpy, cpu = before["random"]
            random.setstate(python)
            np.random.set_state(numpy)
            torch.set_rng_state(cpu)

        def forward(self, inputs: Any) -> Any:
            try:
                return super().forward(inputs)
            except RuntimeError as error:
                raise ArithmeticError("the step failed and was undone") from error


class ReadsOnTheFirstRank(RightRanks):
    """A target whose first rank reads the files and sends them to the others."""

    def load_adapter(self, model: nn.Module, path: Any) -> Any:
        if not torch.distributed.is_initialized():
            return reference.load_adapter(model, path)
        sent: list[Any] = [None]
        if torch.distributed.get_rank() == 0 and Path(path).is_dir():
            sent = [{file.name: file.read_bytes() for file in Path(path).iterdir()}]
        torch.distributed.broadcast_object_list(sent, src=0)
        with tempfile.TemporaryDirectory() as folder:
            for name, data in (sent[0] or {}).items():
                Path(folder, name).write_bytes(data)
            return reference.load_adapter(model, folder)


STEPS_AND_FILES: dict[str, tuple[Any, tuple[str, ...]]] = {
    "undoes by state_dicts": (UndoesByStateDicts(), ("TRN-FAILED", "TRN-STEP")),
    "reads on the first rank": (ReadsOnTheFirstRank(), ("DIS-ADAPTER",)),
}
