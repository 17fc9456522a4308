"""Known-bad twins of forward: a fused block confuses its projections, or fails on a shape, layout, dtype or value."""

from __future__ import annotations

import copy

import torch

from tests.baselines.fused import Right
from tests.known_bad import breaks


@breaks("FUS-QKV", says="elements wrong", source="k and v, of the same shape, swapped")
class SwapsKeyAndValue(Right):
    def lora_qkv(self, x, q, k, v):
        return super().lora_qkv(x, q, v, k)


@breaks("FUS-QKV", says="worst    k", source="one S for all projections, computed from the first adapter")
class UsesTheMiddleOfQForK(Right):
    def qkv(self, x, projections):
        q, k, v = copy.copy(projections)
        if q.A is not None and k.A is not None and q.A.shape == k.A.shape:
            k = copy.copy(k)
            k.A = q.A
        return super().qkv(x, [q, k, v])


@breaks("FUS-QKV", says="adapter term is 0.5 times what it should be", source="one scale for all projections")
class UsesTheScaleOfQForAll(Right):
    def qkv(self, x, projections):
        return tuple(
            self.base(x, p) if p.A is None else self.base(x, p) + (self.update(x, p) / p.scale * scale).to(x.dtype)
            for p, scale in ((p, projections[0].scale) for p in projections)
        )


@breaks("FUS-QKV", says="worst", dtypes=("float64",), source="Triton: a float is 32 bits")
class RoundsTheScaleTo32Bits(Right):
    def update(self, x, p):
        p = copy.copy(p)
        p.scale = torch.tensor(p.scale).item()
        return super().update(x, p)


@breaks("FUS-MLP", says="elements wrong", source="f applied to the wrong half of a joined product")
class SwapsGateAndUp(Right):
    def lift(self, gate, up, activation):
        return super().lift(up, gate, activation) if gate is not None else super().lift(gate, up, activation)


@breaks("FUS-MLP", says="worst")
class ForgetsTheAdapterOfTheGate(Right):
    def project(self, x, p):
        return self.base(x, p) if p.name == "gate" else super().project(x, p)


@breaks("FUS-MLP", says="error ÷ budget", dtypes=("float32",), source="f computed in the dtype of the tensor cores")
class ActivatesInSixteenBits(Right):
    def activated(self, t, activation):
        return super().activated(t.to(torch.bfloat16), activation).to(t.dtype)


@breaks("FUS-LEAD", says="raised", source="NVIDIA-NeMo/Automodel LoRATritonFunction (ST5)")
class FlattensThreeDimensionsOnly(Right):
    def call(self, activation, x, named):
        if x.dim() not in (2, 3):
            raise RuntimeError(f"expected a matrix, got {x.dim()} dimensions")
        return super().call(activation, x, named)


@breaks("FUS-LEAD", says="shape", source="NVIDIA-NeMo/Megatron-Bridge #1628 (ML5)")
class ReturnsMatrices(Right):
    def call(self, activation, x, named):
        return tuple(y.reshape(-1, y.shape[-1]) for y in super().call(activation, x, named))


@breaks("FUS-LAYOUT", says="worst", source="Dao-AILab/flash-attention #355 (ST3), forward")
class WalksXAsIfPacked(Right):
    def call(self, activation, x, named):
        if x.dim() > 1 and not x.is_contiguous() and x.stride(-1) == 1 and 0 not in x.stride():
            x = x.as_strided(x.shape, torch.empty(x.shape).stride(), x.storage_offset())
        return super().call(activation, x, named)


@breaks("FUS-LAYOUT", says="dA of", source="Dao-AILab/flash-attention #355 (ST3)")
class WalksGAsIfPacked(Right):
    def d_A(self, g, x, p):
        if not g.is_contiguous() and 0 not in g.stride():
            g = g.as_strided(g.shape, torch.empty(g.shape).stride(), g.storage_offset())
        return super().d_A(g, x, p)


@breaks("FUS-MIXED", says="dtype", source="unslothai/unsloth (DT1)")
class ReturnsTheAdapterDtype(Right):
    def lora_qkv(self, x, q, k, v):
        ys = super().lora_qkv(x, q, k, v)
        return tuple(y.to(q[2].dtype) for y in ys)


@breaks("FUS-MIXED", says="raised RuntimeError", source="NVIDIA-NeMo/Automodel (DT1)")
class CannotMixDtypes(Right):
    def middle(self, x, p):
        return x @ p.A.T


@breaks("FUS-ADAPTERS", says="raised AttributeError")
class NeedsEveryAdapter(Right):
    def call(self, activation, x, named):
        for projection in named.values():
            projection[2].data_ptr()
        return super().call(activation, x, named)


@breaks("FUS-ADAPTERS", says="adapter term were missing", source="a fast path that needs all adapters or none")
class DropsAllWhereOneIsMissing(Right):
    def call(self, activation, x, named):
        if any(p[2] is None for p in named.values()):
            named = {name: (*p[:2], None, None, p[4]) for name, p in named.items()}
        return super().call(activation, x, named)


@breaks("FUS-NONFINITE", says="finite", source="a NaN guard that hides errors")
class ReplacesNaN(Right):
    def call(self, activation, x, named):
        return super().call(activation, torch.nan_to_num(x), named)


@breaks("FUS-NONFINITE", says="NaN", source="a mask applied by multiplication")
class SpreadsNaNOverRows(Right):
    def base(self, x, p):
        y = super().base(x, p)
        return y + 0 * y.sum(0)


@breaks("FUS-SHAPES", says="expected an error", dtypes=("float32",), source="a kernel that does not check shapes")
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
