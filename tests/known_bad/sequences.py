"""Known-bad twins of calls one after another, of one long size, of shared memory, and of masks that come again."""

from __future__ import annotations

import math
import threading
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tests.baselines.linear import BackwardOperands, Right, UpdateOperands
from tests.known_bad import both


@both("BWD-MICRO", says="3 micro-batches", source="one workspace for all calls, which a parameter's gradient then is")
class HandsOutItsWorkspace(Right):
    def reset(self) -> None:
        self.buffers: dict[Any, Tensor] = {}

    def gradient_of_lora_A(self, o: BackwardOperands) -> Tensor:
        if not hasattr(self, "buffers"):
            self.reset()
        found = super().gradient_of_lora_A(o)
        buffer = self.buffers.setdefault((found.shape, found.dtype), torch.empty_like(found))
        return buffer.copy_(found).view_as(buffer)


@both("BWD-MICRO", says="dA of 2 micro-batches is None", source="which gradients are wanted, asked at the first call")
class AsksOnceWhatIsTrained(Right):
    def lora_linear(
        self, x: Tensor, weight: Any, bias: Any, lora_A: Tensor, lora_B: Tensor, *args: Any, **o: Any
    ) -> Any:
        if not hasattr(lora_A, "trained"):
            lora_A.trained = lora_A.requires_grad
        elif not lora_A.trained:
            lora_A = lora_A.detach()
        return super().lora_linear(x, weight, bias, lora_A, lora_B, *args, **o)


@both("MODE-INFERENCE", says="y of new values under", source="W + s·B A kept from the first call without a graph on")
class KeepsTheProductWithoutAGraph(Right):
    def lora_linear(self, x: Tensor, weight: Any, bias: Any, lora_A: Tensor, *args: Any, **options: Any) -> Tensor:
        if not torch.is_grad_enabled():
            if not hasattr(lora_A, "kept"):
                lora_A.kept = lora_A.detach().clone()
            lora_A = lora_A.kept
        return super().lora_linear(x, weight, bias, lora_A, *args, **options)


@both("MODE-INFERENCE", says="raised RuntimeError", source="a packed copy of A made under inference_mode, trained with")
class TrainsWithAnInferenceTensor(Right):
    def lora_linear(self, x: Tensor, weight: Any, bias: Any, lora_A: Tensor, *args: Any, **options: Any) -> Tensor:
        if getattr(lora_A, "packed_at", None) is None:
            lora_A.packed_at = torch.is_inference_mode_enabled()
        elif lora_A.packed_at and torch.is_grad_enabled():
            raise RuntimeError("Inference tensors cannot be saved for backward.")
        return super().lora_linear(x, weight, bias, lora_A, *args, **options)


LOCAL = threading.local()
LOCAL.workspace = "made where this is imported"


@both("MODE-THREAD", says="raised AttributeError", source="a threading.local set at import")
class KnowsOneThread(Right):
    def base(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        assert LOCAL.workspace
        return super().base(x, weight, bias)

    def update(self, o: UpdateOperands) -> Tensor:
        assert LOCAL.workspace
        return super().update(o)


class Referring(torch.autograd.Function):
    """A call of a `Right` that keeps its operands past `save_for_backward`."""

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


@both("MEM-SAVED", says="worst    d", source="unslothai/unsloth, in kind: tensors kept as attributes of ctx")
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


@both("AMP-ENTRY", says="raised RuntimeError", dtypes=("float32",), source="operands asked to be of one dtype")
class WantsOneDtypeUnderAutocast(Right):
    def lora_linear(self, x: Tensor, weight: Any, bias: Any, lora_A: Tensor, *args: Any, **options: Any) -> Tensor:
        if torch.is_autocast_enabled(x.device.type) and x.dtype != lora_A.dtype:
            raise RuntimeError("expected m1 and m2 to have the same dtype")
        return super().lora_linear(x, weight, bias, lora_A, *args, **options)


@both("AMP-ENTRY", says="dtype", dtypes=("float32",), source="custom_fwd(cast_inputs=torch.bfloat16)")
class TakesAutocastForBfloat16(Right):
    def lora_linear(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        if not torch.is_autocast_enabled(x.device.type):
            return super().lora_linear(x, *args, **options)
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            return super().lora_linear(x, *args, **options)


@both(
    "AMP-ENTRY",
    says="y after autocast",
    dtypes=("float32",),
    source="autocast's copy of a weight kept after its region",
)
class KeepsAutocastsCopy(Right):
    def lora_linear(self, x: Tensor, weight: Any, bias: Any, lora_A: Tensor, *args: Any, **options: Any) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):
            lora_A.narrow = torch.get_autocast_dtype(x.device.type)
        elif hasattr(lora_A, "narrow"):
            lora_A = lora_A + (lora_A.to(lora_A.narrow).to(lora_A.dtype) - lora_A).detach()
        return super().lora_linear(x, weight, bias, lora_A, *args, **options)


@both("SIZE-LONG", says="worst", source="a rank that one block must hold")
class LosesRanksBeyond128(Right):
    def update(self, o: UpdateOperands) -> Tensor:
        return super().update(replace(o, lora_A=o.lora_A[:128], lora_B=o.lora_B[:, :128]))


@both("SIZE-LONG", says="worst", source="split-K from 2048 features on, its last part not looped over")
class LosesTheTailWhereItSplitsK(Right):
    def update(self, o: UpdateOperands) -> Tensor:
        whole = o.x.shape[1] // 256 * 256 if o.x.shape[1] > 2048 else o.x.shape[1]
        return super().update(replace(o, x=o.x[:, :whole], lora_A=o.lora_A[:, :whole]))


@both("SIZE-LONG", says="worst    dA", source="a grid that is capped at 1024 rows")
class SumsTheFirst1024Tokens(Right):
    def gradient_of_lora_A(self, o: BackwardOperands) -> Tensor:
        return super().gradient_of_lora_A(replace(o, g_adapter=o.g_adapter[:1024], x=o.x[:1024]))


@both("LAYOUT-SHARED", says="worst    dB", source="the gradient of y.sum() read from its one element on")
class ReadsANumberAsAMatrix(Right):
    def gradient_of_lora_B(self, o: BackwardOperands) -> Tensor:
        g = o.g_adapter
        if g.numel() > 1 and set(g.stride()) == {0}:
            first = torch.zeros(g.shape, dtype=g.dtype)
            first[0, 0] = g[0, 0]
            g = first
        return super().gradient_of_lora_B(replace(o, g_adapter=g))


@both("LAYOUT-SHARED", says="worst    y", source="stride(0) == 1 taken for a transposed matrix")
class TakesWindowsForColumns(Right):
    def lora_linear(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        if x.dim() == 2 and x.stride() == (1, 1) and min(x.shape) > 1:
            x = x[:1].expand(x.shape)
        return super().lora_linear(x, *args, **options)


@both("LAYOUT-SHARED", says="worst    y", source="a last stride of 0 taken for 1")
class TakesOneNumberForARow(Right):
    def lora_linear(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        if x.dim() == 2 and x.stride(1) == 0 and x.shape[1] > 1:
            x = x * torch.eye(1, x.shape[1], dtype=x.dtype)
        return super().lora_linear(x, *args, **options)


@both(
    "BWD-NONFINITE", says="finite elements although", dtypes=("float32",), source="nan_to_num, which hides an overflow"
)
class HidesWhatIsNoNumber(Right):
    def gradient_of_lora_A(self, o: BackwardOperands) -> Tensor:
        return super().gradient_of_lora_A(replace(o, g_adapter=o.g_adapter.nan_to_num()))


@both("BWD-NONFINITE", says="worst", dtypes=("float32",), source="a tail masked by multiplying with zero")
class SpreadsWhatIsNoNumber(Right):
    def back_through_update(self, o: BackwardOperands) -> Tensor:
        return super().back_through_update(o) + 0 * o.g_adapter.sum()


@both("DROP-INDEPENDENT", says="in itself", source="the offset of a random number taken from the row within its block")
class RepeatsTheMaskEvery32Rows(Right):
    def mask(self, like: Tensor, p: float) -> Tensor:
        first = super().mask(like[:32], p)
        return first.repeat(-(-len(like) // 32), 1)[: len(like)]


@both("DROP-INDEPENDENT", says="in itself", source="one random number for two neighbours")
class DropsInPairs(Right):
    def mask(self, like: Tensor, p: float) -> Tensor:
        half = super().mask(like[:, : (like.shape[1] + 1) // 2], p)
        return half.repeat_interleave(2, 1)[:, : like.shape[1]]


@both("DROP-INDEPENDENT", says="in the next call's", source="an offset that advances by rows, not by elements")
class MovesTheMaskByARow(Right):
    def reset(self) -> None:
        self.last: dict[Any, Tensor] = {}

    def mask(self, like: Tensor, p: float) -> Tensor:
        if not hasattr(self, "last"):
            self.reset()
        found, key = super().mask(like, p), (like.shape, like.dtype, p)
        if key in self.last and torch._C._current_graph_task_id() == -1:
            found = torch.cat([self.last[key][1:], found[:1]])
        self.last[key] = found
        return found


@both("DROP-CKPT", says="worst    y of the probe", source="dropout thought to matter to a graph alone")
class DropsWithAGraphOnly(Right):
    def lora_linear(self, *args: Any, dropout: float = 0.0, **options: Any) -> Tensor:
        acts = torch.is_grad_enabled() or not 0 <= dropout < 1
        return super().lora_linear(*args, dropout=dropout if acts else 0.0, **options)


@both("DROP-NEEDS", says="worst    d", source="a mask kept for the gradient of x alone")
class ForgetsTheMaskWithoutX(Right):
    def lora_linear(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        y = super().lora_linear(x, *args, **options)
        if options.get("dropout") and options.get("training") and not x.requires_grad and y.requires_grad:
            plain = super().lora_linear(x, *args, **{**options, "dropout": 0.0})
            return y.detach() + plain - plain.detach()
        return y
