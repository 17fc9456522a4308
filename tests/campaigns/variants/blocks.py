"""Right but different blocks of several layers over one x: other orders, merged weights, joined products."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import reference
from tests.baselines.fused import Right


class Eager:
    """The blocks written plainly in PyTorch, differentiated by autograd in the dtype of x."""

    def project(self, x: Tensor, p: Any) -> Tensor:
        weight, bias, lora_A, lora_B, scale = p
        base = torch.nn.functional.linear(x, weight.detach(), bias)
        return base if lora_A is None else base + ((x.to(lora_A.dtype) @ lora_A.T) @ lora_B.T * scale).to(x.dtype)

    def activated(self, t: Tensor, activation: str) -> Tensor:
        return reference.mlp.activated(t, activation)

    def lora_qkv(self, x: Tensor, q: Any, k: Any, v: Any) -> Any:
        return self.project(x, q), self.project(x, k), self.project(x, v)

    def lora_mlp(self, x: Tensor, gate: Any, up: Any, down: Any, activation: str = "silu") -> Tensor:
        lifted = self.project(x, up)
        if gate is None:
            return self.project(self.activated(lifted, activation), down)
        return self.project(self.activated(self.project(x, gate), activation) * lifted, down)


class Merged(Eager):
    """Merges W + s·B A first, then rounds it to the dtype of x."""

    def project(self, x: Tensor, p: Any) -> Tensor:
        weight, bias, lora_A, lora_B, scale = p
        if lora_A is None:
            return super().project(x, p)
        merged = weight.detach() + scale * (lora_B @ lora_A)
        return torch.nn.functional.linear(x, merged.to(x.dtype), bias)


class UpFirst(Eager):
    """Another order: the scale on x, the adapter's term before the base, the bias last; silu as t · sigmoid(t)."""

    def project(self, x: Tensor, p: Any) -> Tensor:
        weight, bias, lora_A, lora_B, scale = p
        base = torch.nn.functional.linear(x, weight.detach())
        y = base if lora_A is None else ((x.to(lora_A.dtype) * scale @ lora_A.T) @ lora_B.T).to(x.dtype) + base
        return y if bias is None else y + bias

    def activated(self, t: Tensor, activation: str) -> Tensor:
        return t * torch.sigmoid(t) if activation == "silu" else super().activated(t, activation)


class Joined(Right):
    """One product with the A of all projections, another with all base weights, both in float32 at least."""

    def qkv(self, x: Tensor, projections: list[Any]) -> tuple[Tensor, ...]:
        wide = torch.promote_types(torch.float32, x.dtype)
        with_adapter = [p for p in projections if p.A is not None]
        parts: dict[str, Tensor] = {}
        if with_adapter:
            S = x.to(wide) @ torch.cat([p.A.to(wide) for p in with_adapter]).T
            pieces = S.split([p.A.shape[0] for p in with_adapter], 1)
            parts = {p.name: s @ p.B.to(wide).T * p.scale for p, s in zip(with_adapter, pieces, strict=True)}
        base = x.to(wide) @ torch.cat([p.weight for p in projections]).to(wide).T
        ys = [y + parts.get(p.name, 0.0) for p, y in self._split(base, projections)]
        return tuple((y if p.bias is None else y + p.bias).to(x.dtype) for p, y in zip(projections, ys, strict=True))

    @staticmethod
    def _split(base: Tensor, projections: list[Any]) -> list[tuple[Any, Tensor]]:
        return list(zip(projections, base.split([p.weight.shape[0] for p in projections], 1), strict=True))


class KeepsTheActivation(Right):
    """Keeps h from forward to backward instead of recomputing it."""

    def mlp(self, x: Tensor, projections: list[Any], activation: str) -> tuple[Tensor, ...]:
        found = super().mlp(x, projections, activation)
        lifts = found[:-1]
        self.h = self.lift(*((None, *lifts) if len(lifts) == 1 else lifts), activation)
        return found

    def back_mlp(
        self, x: Tensor, lifts: list[Tensor], projections: list[Any], g: Tensor, activation: str
    ) -> tuple[Tensor, list[Any]]:
        dx, pairs = super().back_mlp(x, lifts, projections, g, activation)
        return dx, [*pairs[:-1], (self.h, g)]


VARIANTS = {v.__name__: v() for v in (Right, Eager, Merged, UpFirst, Joined, KeepsTheActivation)}
