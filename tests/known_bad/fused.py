"""Known-bad twins of group `fused`: what goes in and out, adapters, layouts, activations, and surroundings."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from tests.baselines.fused import Right
from tests.known_bad import breaks
from tests.known_bad.effects import KeepsOutput

FUSED = ("fused",)
GENERATOR = torch.Generator().manual_seed(1)  # a random source that torch.manual_seed does not reach


@breaks("FUS-QKV", says="elements wrong", groups=FUSED, source="k and v of one shape, taken for each other")
class SwapsKeyAndValue(Right):
    def lora_qkv(self, x, q, k, v):
        return super().lora_qkv(x, q, v, k)


@breaks("FUS-QKV", says="worst    k", groups=FUSED, source="one S for all, of which only the first part is used")
class UsesTheMiddleOfQForK(Right):
    def qkv(self, x, projections):
        q, k, v = copy.copy(projections)
        if q.A is not None and k.A is not None and q.A.shape == k.A.shape:
            k = copy.copy(k)
            k.A = q.A
        return super().qkv(x, [q, k, v])


@breaks("FUS-QKV", says="adapter term is 0.5 times what it should be", groups=FUSED, source="one scale for all")
class UsesTheScaleOfQForAll(Right):
    def qkv(self, x, projections):
        return tuple(
            self.base(x, p) if p.A is None else self.base(x, p) + (self.update(x, p) / p.scale * scale).to(x.dtype)
            for p, scale in ((p, projections[0].scale) for p in projections)
        )


@breaks("FUS-MLP", says="elements wrong", groups=FUSED, source="f applied to the wrong half of a joined product")
class SwapsGateAndUp(Right):
    def lift(self, gate, up, activation):
        return super().lift(up, gate, activation) if gate is not None else super().lift(gate, up, activation)


@breaks("FUS-MLP", says="as if the gate adapter term were missing", groups=FUSED)
class ForgetsTheAdapterOfTheGate(Right):
    def project(self, x, p):
        return self.base(x, p) if p.name == "gate" else super().project(x, p)


@breaks("FUS-MLP", says="error ÷ budget", groups=FUSED, dtypes=("float32",), source="f in the dtype of tensor cores")
class ActivatesInSixteenBits(Right):
    def activated(self, t, activation):
        return super().activated(t.to(torch.bfloat16), activation).to(t.dtype)


@breaks("FUS-LEAD", says="raised", groups=FUSED, source="NVIDIA-NeMo/Automodel LoRATritonFunction (ST5)")
class FlattensThreeDimensionsOnly(Right):
    def call(self, activation, x, named):
        if x.dim() not in (2, 3):
            raise RuntimeError(f"expected a matrix, got {x.dim()} dimensions")
        return super().call(activation, x, named)


@breaks("FUS-LEAD", says="shape", groups=FUSED, source="NVIDIA-NeMo/Megatron-Bridge #1628 (ML5)")
class ReturnsMatrices(Right):
    def call(self, activation, x, named):
        return tuple(y.reshape(-1, y.shape[-1]) for y in super().call(activation, x, named))


@breaks("FUS-LAYOUT", says="worst", groups=FUSED, source="Dao-AILab/flash-attention #355 (ST3), forward")
class WalksXAsIfPacked(Right):
    def call(self, activation, x, named):
        if x.dim() > 1 and not x.is_contiguous() and x.stride(-1) == 1 and 0 not in x.stride():
            x = x.as_strided(x.shape, torch.empty(x.shape).stride(), x.storage_offset())
        return super().call(activation, x, named)


@breaks("FUS-LAYOUT", says="dA of", groups=FUSED, source="Dao-AILab/flash-attention #355 (ST3)")
class WalksGAsIfPacked(Right):
    def d_A(self, g, x, p):
        if not g.is_contiguous() and 0 not in g.stride():
            g = g.as_strided(g.shape, torch.empty(g.shape).stride(), g.storage_offset())
        return super().d_A(g, x, p)


@breaks("FUS-MIXED", says="dtype", groups=FUSED, source="unslothai/unsloth (DT1)")
class ReturnsTheAdapterDtype(Right):
    def lora_qkv(self, x, q, k, v):
        ys = super().lora_qkv(x, q, k, v)
        return tuple(y.to(q[2].dtype) for y in ys)


@breaks("FUS-MIXED", says="raised RuntimeError", groups=FUSED, source="NVIDIA-NeMo/Automodel (DT1)")
class CannotMixDtypes(Right):
    def middle(self, x, p):
        return x @ p.A.T


@breaks("FUS-ADAPTERS", says="raised AttributeError", groups=FUSED)
class NeedsEveryAdapter(Right):
    def call(self, activation, x, named):
        for projection in named.values():
            projection[2].data_ptr()
        return super().call(activation, x, named)


@breaks("FUS-ADAPTERS", says="adapter term were missing", groups=FUSED, source="a fast path for all or nothing")
class DropsAllWhereOneIsMissing(Right):
    def call(self, activation, x, named):
        if any(p[2] is None for p in named.values()):
            named = {name: (*p[:2], None, None, p[4]) for name, p in named.items()}
        return super().call(activation, x, named)


@breaks("FUS-NONFINITE", says="finite", groups=FUSED, source="a NaN guard that hides the fault")
class ReplacesNaN(Right):
    def call(self, activation, x, named):
        return super().call(activation, torch.nan_to_num(x), named)


@breaks("FUS-NONFINITE", says="NaN", groups=FUSED, source="a mask by multiplication")
class SpreadsNaNOverRows(Right):
    def base(self, x, p):
        y = super().base(x, p)
        return y + 0 * y.sum(0)


@breaks(
    "FUS-SHAPES", says="expected an error", groups=FUSED, dtypes=("float32",), source="a kernel that trusts its shapes"
)
class TrimsToTheCommonSize(Right):
    def refuse(self, x, projections, activation):
        pass

    def call(self, activation, x, named):
        trimmed, width = {}, x.shape[-1]
        inner = min(p[0].shape[0] for p in named.values()) if activation else 0
        for name, (weight, bias, A, B, scale) in named.items():
            k = min(weight.shape[1], A.shape[1], width if name != "down" else weight.shape[1])
            r, n = min(A.shape[0], B.shape[1]), min(inner, weight.shape[0]) if name in ("gate", "up") else None
            trimmed[name] = (weight[:n, :k], None if bias is None else bias[:n], A[:r, :k], B[:n, :r], scale)
            width = k if name != "down" else width
        if "down" in trimmed:
            *first, A, B, scale = trimmed["down"]
            trimmed["down"] = (first[0][:, :inner], first[1], A[:, :inner], B, scale)
        trimmed = {
            n: (p[0] if n == "down" else p[0][:, :width], p[1], p[2] if n == "down" else p[2][:, :width], *p[3:])
            for n, p in trimmed.items()
        }
        return super().call(activation, x[..., :width], trimmed)


@breaks("FUS-ACTIVATION", says="error ÷ budget", groups=FUSED, dtypes=("float32",), source="one gelu for both")
class TakesTanhForErf(Right):
    def activated(self, t, activation):
        return super().activated(t, "gelu_tanh" if activation == "gelu" else activation)


@breaks("FUS-ACTIVATION", says="error ÷ budget", groups=FUSED, dtypes=("float32",), source="one gelu for both")
class TakesErfForTanh(Right):
    def activated(self, t, activation):
        return super().activated(t, "gelu" if activation == "gelu_tanh" else activation)


@breaks("FUS-SATURATED", says="NaN", groups=FUSED, source="x·eˣ/(1 + eˣ), which is ∞/∞ from 89 on")
class ExponentiatesLargeNumbers(Right):
    def activated(self, t, activation):
        return t * t.exp() / (1 + t.exp()) if activation == "silu" else super().activated(t, activation)


@breaks("FUS-SATURATED", says="NaN", groups=FUSED, source="the slope from e⁻ˣ/(1 + e⁻ˣ)²")
class ExponentiatesInTheSlope(Right):
    def slope(self, t, activation):
        if activation != "silu":
            return super().slope(t, activation)
        share, small = torch.sigmoid(t), torch.exp(-t)
        return share + t * small / (1 + small) ** 2


@breaks("FUS-ACTIVATION-NAME", says="expected a ValueError", groups=FUSED, dtypes=("float32",))
class TakesAnUnknownNameForSilu(Right):
    def lora_mlp(self, x, gate, up, down, activation="silu"):
        known = activation in ("silu", "gelu", "gelu_tanh", "relu2")
        return super().lora_mlp(x, gate, up, down, activation if known else "silu")


@breaks("FUS-MEM-INPUTS", says="x was modified in place", groups=FUSED, source="unslothai/unsloth (AL1)")
class WritesDXOverX(Right):
    def back_qkv(self, x, projections, gs):
        dx, pairs = super().back_qkv(x, projections, gs)
        x.data.copy_(dx)
        return dx, pairs


@breaks("FUS-MEM-INPUTS", says="g of", groups=FUSED, source="an in-place scale of g")
class ScalesGInPlace(Right):
    def d_B(self, g, x, p):
        g.data.mul_(p.scale)
        return g.to(p.A.dtype).T @ self.middle(x, p)


@breaks("FUS-MEM-MARGINS", says="memory around x was written", groups=FUSED, source="a store without a mask")
class WritesBeyondX(Right):
    def call(self, activation, x, named):
        end = x.storage_offset() + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)) + 1
        x.data.as_strided((1,), (1,), end).fill_(0)
        return super().call(activation, x, named)


@breaks("FUS-MEM-OUTPUT", says="modif", groups=FUSED, source="q, k and v as views of one product")
class ReturnsPartsOfOneTensor(Right):
    def lora_qkv(self, x, q, k, v):
        ys = super().lora_qkv(x, q, k, v)
        return Joined.apply(*ys).split([y.shape[-1] for y in ys], -1)


class Joined(torch.autograd.Function):
    """The outputs in one tensor, which is saved for backward."""

    @staticmethod
    def forward(ctx: Any, *ys: Tensor) -> Tensor:
        ctx.widths = [y.shape[-1] for y in ys]
        joined = torch.cat(ys, -1)
        ctx.save_for_backward(joined)
        return joined

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        (joined,) = ctx.saved_tensors
        return (g + 0 * joined).split(ctx.widths, -1)


@breaks("FUS-MEM-OUTPUT", says="modif", groups=FUSED, source="the output saved for backward")
class SavesItsOutput(Right):
    def lora_mlp(self, *args, **options):
        return KeepsOutput.apply(super().lora_mlp(*args, **options))


@breaks("FUS-MEM-LATER", says="elements wrong", groups=FUSED, source="one workspace for all calls")
class KeepsOneWorkspace(Right):
    def kept(self, x, outputs):
        old = getattr(self, "workspace", None)
        if old is None or old.shape != x.shape or old.dtype != x.dtype:
            self.workspace = x.clone()
        else:
            old.data.copy_(x)
        return (self.workspace, *outputs)


@breaks("FUS-DET", says="differs between two identical runs", groups=FUSED, source="atomic accumulation")
class SumsInRandomOrder(Right):
    def reset(self):
        GENERATOR.manual_seed(1)

    def d_A(self, g, x, p):
        return super().d_A(g, x, p) * (1 + 2.0**-7 * float(torch.rand((), generator=GENERATOR)))


@breaks("FUS-SIDE", says="random", groups=FUSED, source="a seed drawn although nothing is dropped")
class DrawsARandomNumber(Right):
    def base(self, x, p):
        torch.rand(())
        return super().base(x, p)


@breaks("FUS-AMP", says="dtype", groups=FUSED, dtypes=("float32",), source="autocast not seen by a custom function")
class IgnoresAutocast(Right):
    def call(self, activation, x, named):
        with torch.autocast("cpu", enabled=False):
            return super().call(activation, x, named)


@breaks("FUS-CKPT", says="raised", groups=FUSED, source="a forward that cannot be repeated inside backward")
class CannotRunInsideBackward(Right):
    def call(self, activation, x, named):
        if torch._C._current_graph_task_id() != -1:
            raise RuntimeError("a backward pass is under way")
        return super().call(activation, x, named)


@breaks("FUS-COMPILE", says="worst", groups=FUSED, source="a Python value burnt in while tracing")
class FreezesItsScaleWhenTraced(Right):
    def update(self, x, p):
        traced = torch.compiler.is_compiling() or isinstance(x, torch._subclasses.FakeTensor)
        return super().update(x, p) / (p.scale if traced else 1.0)
