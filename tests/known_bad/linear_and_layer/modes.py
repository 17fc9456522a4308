"""Known-bad twins of modes: a call ignores autocast, checkpointing or torch.compile."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tests.baselines.layer import Layer
from tests.baselines.linear import Right, UpdateOperands
from tests.known_bad import breaks, record


@breaks("LIN-AMP", "LAY-AMP", says="dtype", dtypes=("float32",), source="a custom function that ignores autocast")
class IgnoresAutocast(Right):
    def lora_linear(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return super().lora_linear(x, *args, **options)


@breaks("LIN-AMP", "LAY-AMP", says="raised RuntimeError", dtypes=("bfloat16",), source="huggingface/peft #2889 (DT4)")
class MultipliesADtypeWithAnother(Right):
    """The base product is computed outside autocast, so that x and W must have one dtype."""

    def lora_linear(self, x: Tensor, weight: Any, bias: Any, *args: Any, **options: Any) -> Tensor:
        y = super().lora_linear(x, weight, bias, *args, **options)
        if weight is not None:
            with torch.autocast("cpu", enabled=False), torch.no_grad():
                torch.nn.functional.linear(x, weight)
        return y


@breaks(
    "LAY-AMP-CHANGED",
    says="lora_A had the values from before the change",
    dtypes=("float32",),
    source="F.linear under autocast, beside a product that casts B itself",
)
class CastsOnlyAOnce(Right):
    def lora_linear(self, x: Tensor, weight: Any, bias: Any, A: Tensor, B: Tensor, scale: float, **how: Any) -> Tensor:
        if not torch.is_autocast_enabled("cpu") or how.get("dropout"):
            return super().lora_linear(x, weight, bias, A, B, scale, **how)
        linear = torch.nn.functional.linear
        update = linear(linear(x, A), B.to(torch.bfloat16)) * scale
        return update if weight is None else linear(x, weight, bias) + update


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


class KeepsItsOperands(Layer):
    """A layer that computes from tuples which it fills when it is built: fast to trace, and blind to an exchange."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.operands = (self.lora_A.weight, self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        if self.merged or self.use_dora or not torch.compiler.is_compiling():
            return super().forward(x)
        options = {"dropout": self.dropout, "dropout_position": self.position, "training": self.training}
        return self.right.lora_linear(x, self.weight, self.bias, *self.operands, self.scale, **options)


record("KeepsItsOperands", Right(KeepsItsOperands), "LAY-COMPILE", says="after an exchange")
