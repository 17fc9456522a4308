"""Known-bad twins of modes: a call ignores autocast, checkpointing or torch.compile."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tests.baselines.linear import Right, UpdateOperands
from tests.known_bad import breaks


@breaks("LIN-AMP", "LAY-AMP", says="dtype", dtypes=("float32",), source="a custom function that ignores autocast")
class IgnoresAutocast(Right):
    def lora_linear(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return super().lora_linear(x, *args, **options)


@breaks("LIN-CKPT", "LAY-CKPT", says="raised", source="a forward that cannot be recomputed inside backward")
class CannotRunInsideBackward(Right):
    def lora_linear(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        if torch._C._current_graph_task_id() != -1:
            raise RuntimeError("a backward pass is under way")
        return super().lora_linear(x, *args, **options)


@breaks("LIN-COMPILE", "LAY-COMPILE", says="worst", source="a Python value that tracing makes a constant")
class FreezesItsScaleWhenTraced(Right):
    def update(self, o: UpdateOperands) -> Tensor:
        traced = torch.compiler.is_compiling() or isinstance(o.x, torch._subclasses.FakeTensor)
        return super().update(replace(o, scale=1.0 if traced else o.scale))
