"""Known-bad twins of side effects and modes: memory, determinism, autocast, checkpointing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tests.baselines.linear import BackwardOperands, Right, UpdateOperands
from tests.known_bad import both

GENERATOR = torch.Generator().manual_seed(1)  # a random source that torch.manual_seed does not reach


class KeepsOutput(torch.autograd.Function):
    """The identity, which saves its output for backward."""

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        y = y.clone()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return g + 0 * y


@both("MEM-INPUTS", says="x was modified in place", source="unslothai/unsloth (AL1)")
class WritesDXOverX(Right):
    def gradient_of_x(self, o: BackwardOperands) -> Tensor:
        dx = super().gradient_of_x(o)
        self.x.data.copy_(dx)
        return dx

    def lora_linear(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        self.x = x.reshape(-1, x.shape[-1])
        return super().lora_linear(x, *args, **options)


@both("MEM-INPUTS", says="g was modified in place", source="an in-place scale of g")
class ScalesGInPlace(Right):
    def gradient_of_lora_B(self, o: BackwardOperands) -> Tensor:
        o.g_adapter.data.mul_(o.scale)
        return o.g_adapter.T @ (o.x @ o.lora_A.T)


@both("MEM-MARGINS", says="memory around x was written", source="a store without a mask")
class WritesBeyondX(Right):
    def lora_linear(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        storage = x.data.as_strided(
            (1,),
            (1,),
            x.storage_offset() + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)) + 1,
        )
        storage.fill_(0)
        return super().lora_linear(x, *args, **options)


@both("MEM-OUTPUT", says="modif", source="the output saved for backward")
class SavesItsOutput(Right):
    def lora_linear(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        return KeepsOutput.apply(super().lora_linear(x, *args, **options))


@both("DET-REPEAT", says="differs between two identical runs", source="atomic accumulation")
class SumsInRandomOrder(Right):
    def reset(self) -> None:
        GENERATOR.manual_seed(1)

    def gradient_of_lora_A(self, o: BackwardOperands) -> Tensor:
        order = torch.randperm(len(o.g_adapter), generator=GENERATOR)
        return super().gradient_of_lora_A(
            replace(
                o,
                g_adapter=o.g_adapter[order],
                x=o.x[order],
                scale=o.scale * (1 + 2.0**-7 * float(torch.rand((), generator=GENERATOR))),
            )
        )


@both("AMP", says="dtype", dtypes=("float32",), source="autocast not seen by a custom function")
class IgnoresAutocast(Right):
    def lora_linear(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return super().lora_linear(x, *args, **options)


@both("CKPT", says="raised", source="a forward that cannot be repeated inside backward")
class CannotRunInsideBackward(Right):
    def lora_linear(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        if torch._C._current_graph_task_id() != -1:
            raise RuntimeError("a backward pass is under way")
        return super().lora_linear(x, *args, **options)


@both("COMPILE", says="worst", source="a Python value burnt in while tracing")
class FreezesItsScaleWhenTraced(Right):
    def update(self, o: UpdateOperands) -> Tensor:
        traced = torch.compiler.is_compiling() or isinstance(o.x, torch._subclasses.FakeTensor)
        return super().update(replace(o, scale=1.0 if traced else o.scale))
