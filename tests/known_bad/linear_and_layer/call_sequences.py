"""Known-bad twins of call sequences: an earlier call changes the result of a later one."""

from __future__ import annotations

import math
import threading
from typing import Any

import torch
from torch import Tensor

from tests.baselines.linear import BackwardOperands, Right, UpdateOperands
from tests.known_bad import breaks


@breaks(
    "LIN-BWD-MICRO",
    "LAY-BWD-MICRO",
    says="3 micro-batches",
    source="a shared workspace returned as a parameter's gradient",
)
class HandsOutItsWorkspace(Right):
    def reset(self) -> None:
        self.buffers: dict[Any, Tensor] = {}

    def gradient_of_lora_A(self, o: BackwardOperands) -> Tensor:
        if not hasattr(self, "buffers"):
            self.reset()
        found = super().gradient_of_lora_A(o)
        buffer = self.buffers.setdefault((found.shape, found.dtype), torch.empty_like(found))
        return buffer.copy_(found).view_as(buffer)


@breaks(
    "LIN-BWD-MICRO",
    "LAY-BWD-MICRO",
    says="dA of 2 micro-batches is None",
    source="requires_grad read only at the first call",
)
class AsksOnceWhatIsTrained(Right):
    def lora_linear(
        self, x: Tensor, weight: Any, bias: Any, lora_A: Tensor, lora_B: Tensor, *args: Any, **o: Any
    ) -> Any:
        if not hasattr(lora_A, "trained"):
            lora_A.trained = lora_A.requires_grad
        elif not lora_A.trained:
            lora_A = lora_A.detach()
        return super().lora_linear(x, weight, bias, lora_A, lora_B, *args, **o)


@breaks(
    "LIN-MODE-INFERENCE",
    "LAY-MODE-INFERENCE",
    says="y of new values under",
    source="W + s·B A cached at the first call without a graph",
)
class KeepsTheProductWithoutAGraph(Right):
    def lora_linear(self, x: Tensor, weight: Any, bias: Any, lora_A: Tensor, *args: Any, **options: Any) -> Tensor:
        if not torch.is_grad_enabled():
            if not hasattr(lora_A, "kept"):
                lora_A.kept = lora_A.detach().clone()
            lora_A = lora_A.kept
        return super().lora_linear(x, weight, bias, lora_A, *args, **options)


@breaks(
    "LIN-MODE-INFERENCE",
    "LAY-MODE-INFERENCE",
    says="raised RuntimeError",
    source="a packed copy of A, made under inference_mode, used in training",
)
class TrainsWithAnInferenceTensor(Right):
    def lora_linear(self, x: Tensor, weight: Any, bias: Any, lora_A: Tensor, *args: Any, **options: Any) -> Tensor:
        if getattr(lora_A, "packed_at", None) is None:
            lora_A.packed_at = torch.is_inference_mode_enabled()
        elif lora_A.packed_at and torch.is_grad_enabled():
            raise RuntimeError("Inference tensors cannot be saved for backward.")
        return super().lora_linear(x, weight, bias, lora_A, *args, **options)


LOCAL = threading.local()
LOCAL.workspace = "made where this is imported"


@breaks("LIN-MODE-THREAD", "LAY-MODE-THREAD", says="raised AttributeError", source="a threading.local set at import")
class KnowsOneThread(Right):
    def base(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        assert LOCAL.workspace
        return super().base(x, weight, bias)

    def update(self, o: UpdateOperands) -> Tensor:
        assert LOCAL.workspace
        return super().update(o)


class Referring(torch.autograd.Function):
    """A call of a `Right` that stores its operands on ctx and bypasses `save_for_backward`."""

    @staticmethod
    def forward(
        ctx: Any, right: Right, x: Tensor, weight: Any, bias: Any, lora_A: Tensor, lora_B: Tensor, scale: float
    ) -> Tensor:
        ctx.kept, ctx.right = (x.detach(), weight, lora_A.detach(), lora_B.detach(), scale), right
        update = right.update(UpdateOperands(x, lora_A, lora_B, scale))
        return update if weight is None else right.total(right.base(x, weight, bias), update)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        (x, weight, lora_A, lora_B, scale), right = ctx.kept, ctx.right
        o, needs = BackwardOperands(x, lora_A, lora_B, scale, g, g, weight), ctx.needs_input_grad
        d_x, d_A, d_B = right.gradient_of_x(o), right.gradient_of_lora_A(o), right.gradient_of_lora_B(o)
        wanted = (d_x, None, right.gradient_of_bias(g), d_A, d_B)
        return None, *(d if need else None for d, need in zip(wanted, needs[1:6], strict=True)), None


@breaks(
    "LIN-MEM-SAVED",
    "LAY-MEM-SAVED",
    says="worst    d",
    source="as in unslothai/unsloth: tensors stored as attributes of ctx",
)
class KeepsOperandsOnCtx(Right):
    def lora_linear(
        self, x: Tensor, weight: Any, bias: Any, lora_A: Tensor, lora_B: Tensor, scale: float, **options: Any
    ) -> Tensor:
        plain = x.dtype == lora_A.dtype and x.shape[-1] == lora_A.shape[1] and lora_A.shape[0] == lora_B.shape[1]
        if options.get("dropout") or torch.is_autocast_enabled(x.device.type) or not plain:
            return super().lora_linear(x, weight, bias, lora_A, lora_B, scale, **options)
        rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
        y: Tensor = Referring.apply(self, rows, weight, bias, lora_A, lora_B, scale)
        return y.reshape(*x.shape[:-1], len(lora_B))


@breaks(
    "LIN-AMP-ENTRY",
    "LAY-AMP-ENTRY",
    says="raised RuntimeError",
    dtypes=("float32",),
    source="operands required to have one dtype",
)
class WantsOneDtypeUnderAutocast(Right):
    def lora_linear(self, x: Tensor, weight: Any, bias: Any, lora_A: Tensor, *args: Any, **options: Any) -> Tensor:
        if torch.is_autocast_enabled(x.device.type) and x.dtype != lora_A.dtype:
            raise RuntimeError("expected m1 and m2 to have the same dtype")
        return super().lora_linear(x, weight, bias, lora_A, *args, **options)


@breaks(
    "LIN-AMP-ENTRY", "LAY-AMP-ENTRY", says="dtype", dtypes=("float32",), source="custom_fwd(cast_inputs=torch.bfloat16)"
)
class TakesAutocastForBfloat16(Right):
    def lora_linear(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        if not torch.is_autocast_enabled(x.device.type):
            return super().lora_linear(x, *args, **options)
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            return super().lora_linear(x, *args, **options)


@breaks(
    "LIN-AMP-ENTRY",
    "LAY-AMP-ENTRY",
    says="y after autocast",
    dtypes=("float32",),
    source="autocast's copy of a weight used after its region",
)
class KeepsAutocastsCopy(Right):
    def lora_linear(self, x: Tensor, weight: Any, bias: Any, lora_A: Tensor, *args: Any, **options: Any) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):
            lora_A.narrow = torch.get_autocast_dtype(x.device.type)
        elif hasattr(lora_A, "narrow"):
            lora_A = lora_A + (lora_A.to(lora_A.narrow).to(lora_A.dtype) - lora_A).detach()
        return super().lora_linear(x, weight, bias, lora_A, *args, **options)
