"""Known-bad twins of side effects: a call changes its operands, keeps a buffer, or is not deterministic."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tests.baselines.linear import BackwardOperands, Right, UpdateOperands
from tests.known_bad import breaks
from tests.known_bad.linear_and_layer.kept_output import KeepsOutput

GENERATOR = torch.Generator().manual_seed(1)  # torch.manual_seed does not reset it


@breaks("LIN-MEM-INPUTS", "LAY-MEM-INPUTS", says="x was modified in place", source="unslothai/unsloth (AL1)")
class WritesDXOverX(Right):
    def gradient_of_x(self, o: BackwardOperands) -> Tensor:
        dx = super().gradient_of_x(o)
        self.x.data.copy_(dx)
        return dx

    def lora_linear(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        self.x = x.reshape(-1, x.shape[-1])
        return super().lora_linear(x, *args, **options)


@breaks("LIN-MEM-INPUTS", "LAY-MEM-INPUTS", says="g was modified in place", source="g scaled in place")
class ScalesGInPlace(Right):
    def gradient_of_lora_B(self, o: BackwardOperands) -> Tensor:
        o.g_adapter.data.mul_(o.scale)
        return o.g_adapter.T @ (o.x @ o.lora_A.T)


@breaks("LIN-MEM-MARGINS", "LAY-MEM-MARGINS", says="memory around x was written", source="an unmasked store")
class WritesBeyondX(Right):
    def lora_linear(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        storage = x.data.as_strided(
            (1,),
            (1,),
            x.storage_offset() + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)) + 1,
        )
        storage.fill_(0)
        return super().lora_linear(x, *args, **options)


@breaks("LIN-MEM-OUTPUT", "LAY-MEM-OUTPUT", says="modif", source="the output saved for backward")
class SavesItsOutput(Right):
    def lora_linear(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        return KeepsOutput.apply(super().lora_linear(x, *args, **options))


@breaks("LIN-DET-REPEAT", "LAY-DET-REPEAT", says="differs between two identical runs", source="atomic accumulation")
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


@breaks("LIN-MEM-LATER", "LAY-MEM-LATER", says="worst    y", source="a reused output buffer")
class ReturnsItsBuffer(Right):
    def reset(self) -> None:
        self.buffers: dict[Any, Tensor] = {}

    def total(self, base: Tensor, update: Tensor) -> Tensor:
        if not hasattr(self, "buffers"):
            self.reset()
        buffer = self.buffers.setdefault((base.shape, base.dtype), torch.empty_like(base))
        return buffer.data.copy_(super().total(base, update))


@breaks(
    "LIN-MEM-LATER",
    "LAY-MEM-LATER",
    says="worst    d",
    source="an intermediate saved for backward in a reused buffer",
)
class KeepsOnlyTheLastInput(Right):
    def update(self, o: UpdateOperands) -> Tensor:
        self.last = o.x.detach()
        return super().update(o)

    def gradient_of_lora_A(self, o: BackwardOperands) -> Tensor:
        last = self.last if self.last.shape == o.x.shape else o.x
        return super().gradient_of_lora_A(replace(o, x=last.to(o.x.dtype)))


@breaks("LIN-MEM-REFILL", "LAY-MEM-REFILL", says="worst    y", source="results cached by data pointer")
class RemembersByAddress(Right):
    def reset(self) -> None:
        self.known: dict[Any, tuple[Any, Tensor]] = {}

    def update(self, o: UpdateOperands) -> Tensor:
        if not hasattr(self, "known"):
            self.reset()
        key = (o.x.data_ptr(), o.lora_A.data_ptr(), o.lora_B.data_ptr(), o.x.shape, o.lora_B.shape, o.scale, o.x.dtype)
        if key not in self.known:  # keeping the sources alive prevents reuse of their addresses
            self.known[key] = (o.x, o.lora_A, o.lora_B), super().update(o)
        return self.known[key][1]


@breaks(
    "LIN-MEM-REFILL",
    "LAY-MEM-REFILL",
    says="lora_A and lora_B had their values of the earlier call (a stale cache)",
    source="a product of the adapters cached while they are trained",
)
class KeepsTheProduct(Right):
    def update(self, o: UpdateOperands) -> Tensor:
        if not hasattr(o.lora_B, "product"):
            o.lora_B.product = o.lora_B.detach() @ o.lora_A.detach()
        return o.x @ o.lora_B.product.to(o.x.dtype).T * o.scale


@breaks(
    "LIN-MEM-REFILL",
    "LAY-MEM-REFILL",
    says="lora_B had their values of the earlier call (a stale cache)",
    phrase="caches the product of the adapters by lora_A alone",
    source="a product of the adapters cached by the version of A",
)
class KeepsTheProductByA(Right):
    def update(self, o: UpdateOperands) -> Tensor:
        key = o.lora_A._version, o.scale
        if getattr(o.lora_A, "product", (None,))[0] != key:
            o.lora_A.product = key, o.lora_B.detach() @ o.lora_A.detach()
        return o.x @ o.lora_A.product[1].to(o.x.dtype).T * o.scale


@breaks(
    "LIN-MEM-REFILL",
    "LAY-MEM-REFILL",
    says="weight had their values of the earlier call (a stale cache)",
    phrase="caches x Wᵀ by x alone",
    source="a base product cached by the version of x, because the weight is frozen",
)
class KeepsTheBaseByX(Right):
    def base(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        key = x.data_ptr(), x._version, x.shape, x.dtype, None if bias is None else bias._version
        if getattr(weight, "product", (None,))[0] != key:
            weight.product = key, super().base(x, weight, bias)
        return weight.product[1].clone()


class _View(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        return y.view(y.shape)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g


@breaks("LIN-MEM-OUTPUT", "LAY-MEM-OUTPUT", says="is a view", source="NVIDIA-NeMo/Automodel #2584 (AM-453)")
class ReturnsAViewFromItsNode(Right):
    def lora_linear(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        y: Tensor = super().lora_linear(x, *args, **options)
        return y if x.ndim == 2 else _View.apply(y)
