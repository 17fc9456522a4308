"""A right `lora_qkv` and `lora_mlp`, split into small methods; twins and correct variants override one of them."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu2")


class Right:
    """A target for the group `fused`; every formula is one small method on matrices x [M, K] and g [M, N].

    A projection is a namespace of name, weight, bias, A, B and scale; A and B are None without an adapter.
    """

    def base(self, x: Tensor, p: Any) -> Tensor:
        """`x Wᵀ + b`."""
        return nn.functional.linear(x, p.weight, p.bias)

    def middle(self, x: Tensor, p: Any) -> Tensor:
        """`S = x Aᵀ`."""
        return x.to(p.A.dtype) @ p.A.T

    def update(self, x: Tensor, p: Any) -> Tensor:
        """`s·(x Aᵀ) Bᵀ`."""
        return self.middle(x, p) @ p.B.T * p.scale

    def project(self, x: Tensor, p: Any) -> Tensor:
        """The projection's output, in x's dtype."""
        base = self.base(x, p)
        return base if p.A is None else base + self.update(x, p).to(base.dtype)

    def back(self, g: Tensor, p: Any) -> Tensor:
        """`g W + s·(g B) A`."""
        base = g @ p.weight
        return base if p.A is None else base + ((g.to(p.A.dtype) @ p.B) @ p.A * p.scale).to(base.dtype)

    def sum_back(self, parts: list[Tensor]) -> Tensor:
        """dX as the sum of the projections' parts."""
        return sum(parts[1:], parts[0])

    def d_A(self, g: Tensor, x: Tensor, p: Any) -> Tensor:
        """`s·(g B)ᵀ x`."""
        return (g.to(p.A.dtype) @ p.B).T @ x.to(p.A.dtype) * p.scale

    def d_B(self, g: Tensor, x: Tensor, p: Any) -> Tensor:
        """`s·gᵀ (x Aᵀ)`."""
        return g.to(p.A.dtype).T @ self.middle(x, p) * p.scale

    def d_bias(self, g: Tensor) -> Tensor:
        """`Σ g`."""
        return g.sum(0)

    def d_weight(self, g: Tensor, x: Tensor) -> Tensor | None:
        """None: the weights are frozen."""
        return None

    def activated(self, t: Tensor, activation: str) -> Tensor:
        """f(t); t is at least float32."""
        if activation == "silu":
            return nn.functional.silu(t)
        if activation == "relu2":
            return nn.functional.relu(t) ** 2
        return nn.functional.gelu(t, approximate="tanh" if activation == "gelu_tanh" else "none")

    def slope(self, t: Tensor, activation: str) -> Tensor:
        """f′(t)."""
        if activation == "silu":
            return torch.ops.aten.silu_backward(torch.ones_like(t), t)
        if activation == "relu2":
            return 2 * torch.relu(t)
        kind = "tanh" if activation == "gelu_tanh" else "none"
        return torch.ops.aten.gelu_backward(torch.ones_like(t), t, approximate=kind)

    def lift(self, gate: Tensor | None, up: Tensor, activation: str) -> Tensor:
        """`h = f(gate)·up`, or `f(up)` without gate, rounded once."""
        h = self.activated(wide(up if gate is None else gate), activation)
        return (h if gate is None else h * wide(up)).to(up.dtype)

    def d_gate(self, d_h: Tensor, gate: Tensor, up: Tensor, activation: str) -> Tensor:
        """`d_h·up·f′(gate)`."""
        return (wide(d_h) * wide(up) * self.slope(wide(gate), activation)).to(up.dtype)

    def d_up(self, d_h: Tensor, gate: Tensor | None, up: Tensor, activation: str) -> Tensor:
        """`d_h·f(gate)`, or `d_h·f′(up)` without gate."""
        if gate is None:
            return (wide(d_h) * self.slope(wide(up), activation)).to(up.dtype)
        return (wide(d_h) * self.activated(wide(gate), activation)).to(up.dtype)

    def qkv(self, x: Tensor, projections: list[Any]) -> tuple[Tensor, ...]:
        """The outputs q, k and v."""
        return tuple(self.project(x, p) for p in projections)

    def kept(self, x: Tensor, outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The inputs and results that forward saves for backward."""
        return (x, *outputs)

    def back_qkv(self, x: Tensor, projections: list[Any], gs: list[Tensor | None]) -> tuple[Any, list[Any]]:
        """dX, and the pair (input, upstream gradient) of each projection."""
        parts = [self.back(g, p) for g, p in zip(gs, projections, strict=True) if g is not None]
        return self.sum_back(parts) if parts else None, [(x, g) for g in gs]

    def mlp(self, x: Tensor, projections: list[Any], activation: str) -> tuple[Tensor, ...]:
        """The outputs of gate (if there is one) and up, then y."""
        *inner, down = projections
        lifts = [self.project(x, p) for p in inner]
        return (*lifts, self.project(self.lift(*_both(lifts), activation), down))

    def back_mlp(
        self, x: Tensor, lifts: list[Tensor], projections: list[Any], g: Tensor, activation: str
    ) -> tuple[Tensor, list[Any]]:
        """dX, and the pair (input, upstream gradient) of each projection."""
        *inner, down = projections
        gate, up = _both(lifts)
        h, d_h = self.lift(gate, up, activation), self.back(g, down)
        d_lifts = [self.d_up(d_h, gate, up, activation)]
        if gate is not None:
            d_lifts.insert(0, self.d_gate(d_h, gate, up, activation))
        d_x = self.sum_back([self.back(d, p) for d, p in zip(d_lifts, inner, strict=True)])
        return d_x, [*((x, d) for d in d_lifts), (h, g)]

    def refuse(self, x: Tensor, projections: list[Any], activation: str) -> None:
        """Raise if the operands do not chain or the activation is unknown."""
        width = x.shape[-1]
        for p in projections:
            if p.name == "down":
                width = projections[0].weight.shape[0]
            shapes = [width] if p.A is None else [width, p.A.shape[1]]
            if {p.weight.shape[1]} != set(shapes):
                raise ValueError(f"{p.name} takes {p.weight.shape[1]} features: expected {width}")
            if p.A is not None and (p.A.shape[0] != p.B.shape[1] or p.B.shape[0] != p.weight.shape[0]):
                raise ValueError(f"{p.name}: {p.A.shape} and {p.B.shape} do not chain with {p.weight.shape}")
        if len({p.weight.shape[0] for p in projections if p.name in ("gate", "up")}) > 1:
            raise ValueError("gate and up differ in width")
        if activation not in ACTIVATIONS:
            raise ValueError(f"unknown activation {activation!r}")

    def lora_qkv(self, x: Tensor, q: Any, k: Any, v: Any) -> tuple[Tensor, ...]:
        return self.call("", x, {"q": q, "k": k, "v": v})

    def lora_mlp(self, x: Tensor, gate: Any, up: Any, down: Any, activation: str = "silu") -> Tensor:
        named = {"up": up, "down": down}
        return self.call(activation, x, named if gate is None else {"gate": gate, **named})[0]

    def call(self, activation: str, x: Tensor, named: dict[str, Any]) -> tuple[Tensor, ...]:
        """Run either function on an x of any leading dimensions, as one autograd node."""
        names, flat = tuple(named), [t for p in named.values() for t in p[:4]]
        scales = [p[4] for p in named.values()]
        self.refuse(x, _grouped(names, flat, scales), activation or "silu")
        if torch.is_autocast_enabled(x.device.type):
            kind = torch.get_autocast_dtype(x.device.type)
            x, *flat = (None if t is None else t.to(kind) for t in (x, *flat))
        rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
        with torch.autocast(x.device.type, enabled=False):
            ys = self.node.apply(self, activation, names, scales, rows, *flat)
        return tuple(y.reshape(*x.shape[:-1], y.shape[-1]) for y in ys)

    @property
    def node(self) -> Any:
        """The autograd function that `call` applies."""
        return Call


class Call(torch.autograd.Function):
    """One differentiable call of a `Right`, on matrices."""

    @staticmethod
    def forward(
        ctx: Any, right: Right, activation: str, names: tuple[str, ...], scales: list[float], x: Tensor, *flat: Any
    ) -> tuple[Tensor, ...]:
        projections = _grouped(names, flat, scales)
        outputs = right.mlp(x, projections, activation) if activation else right.qkv(x, projections)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*right.kept(x, outputs[:-1] if activation else ()), *flat)
        ctx.right, ctx.activation, ctx.names, ctx.scales = right, activation, names, scales
        return outputs[-1:] if activation else outputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gs: Tensor | None) -> Any:
        return gradients(ctx, gs)


def gradients(ctx: Any, gs: Any) -> Any:
    """Return the gradients that `Call.backward` returns."""
    right, inner = ctx.right, len(ctx.names) - 1 if ctx.activation else 0
    x, *saved = ctx.saved_tensors
    lifts, flat = saved[:inner], saved[inner:]
    projections = _grouped(ctx.names, flat, ctx.scales)
    if ctx.activation:
        d_x, pairs = right.back_mlp(x, lifts, projections, gs[0], ctx.activation)
    else:
        d_x, pairs = right.back_qkv(x, projections, list(gs))
    found: list[Any] = []
    for i, (p, (rows, g)) in enumerate(zip(projections, pairs, strict=True)):
        _, bias, A, B = ctx.needs_input_grad[5 + 4 * i : 9 + 4 * i]
        if g is None:
            found += [None] * 4
            continue
        found += [right.d_weight(g, rows), right.d_bias(g) if bias else None]
        found += [right.d_A(g, rows, p) if A else None, right.d_B(g, rows, p) if B else None]
    return None, None, None, None, d_x, *found


def wide(t: Tensor) -> Tensor:
    return t.float() if t.dtype.itemsize == 2 else t


def _both(lifts: list[Tensor]) -> tuple[Tensor | None, Tensor]:
    return (None, lifts[0]) if len(lifts) == 1 else (lifts[0], lifts[1])


def _grouped(names: tuple[str, ...], flat: Any, scales: list[float]) -> list[Any]:
    keys = ("weight", "bias", "A", "B")
    return [
        SimpleNamespace(name=name, scale=scale, **dict(zip(keys, flat[4 * i : 4 * i + 4], strict=True)))
        for i, (name, scale) in enumerate(zip(names, scales, strict=True))
    ]
