"""Operations that change a layer's tensors and attributes: values, Parameters, scale, flags, hooks."""

from __future__ import annotations

from typing import Any

from torch import nn

from conformance.clauses.life.situation import Operation, Situation

ADAPTER = ("lora_A", "lora_B")
SCALES = (0.5, 3.0, 1.0, 2.0)


def may_change(name: str, now: Situation) -> bool:
    """Whether the values of a tensor may change: of a merged layer only the bias, and the adapter where unguarded.

    Autocast may keep the cast of a Parameter as long as its region lasts, so nothing changes inside one, unless the
    clause demands that too.
    """
    if (now.regions and not now.changing) or (name == "weight" and now.base != "plain"):
        return False
    return not now.merged or name == "bias" or (name in ADAPTER and now.unguarded)


class Fill(Operation):
    """New values, written into a tensor in place, as an optimiser or another holder of the tensor does."""

    def __init__(self, tensor: str) -> None:
        self.tensor, self.name = tensor, f"fill-{tensor.removeprefix('lora_')}"

    def fits(self, now: Situation) -> bool:
        return may_change(self.tensor, now)

    def available(self, life: Any) -> bool:
        return self.tensor in life.truth.values

    def act(self, life: Any) -> None:
        life.fill(self.tensor)


class Replace(Operation):
    """Another Parameter in place of the layer's."""

    keeps_graph = True

    def __init__(self, tensor: str) -> None:
        self.tensor, self.name = tensor, f"replace-{tensor.removeprefix('lora_')}"

    def fits(self, now: Situation) -> bool:
        return now.base == "plain" and may_change(self.tensor, now.but(regions=()))

    def available(self, life: Any) -> bool:
        return self._owner(life) != ""

    def _owner(self, life: Any) -> str:
        """The attribute that holds the Parameter, as code; empty where the layer computes it."""
        layer, name = life.layer, self.tensor
        if name in layer._parameters:
            return f"layer.{name}"
        held = layer._modules.get(name)
        return f"layer.{name}.weight" if isinstance(held, nn.Module) and "weight" in held._parameters else ""

    def act(self, life: Any) -> None:
        name, values = self.tensor, life.values(self.tensor)
        grad = name in life.truth.trainable
        made = f"nn.Parameter(value, requires_grad={grad})"
        life.run(f"{self._owner(life)} = {made}", value=life.tensor(name, values))
        life.truth.values[name] = values
        life.rebind()


class Exchange(Operation):
    """The adapter's modules exchanged with those of another layer."""

    name, keeps_graph = "exchange", True

    def fits(self, now: Situation) -> bool:
        return not now.merged or now.unguarded

    def available(self, life: Any) -> bool:
        return all(name in life.layer._modules for name in ADAPTER)

    def act(self, life: Any) -> None:
        truth = life.truth
        life.run("other = build(dtype, adapter_dtype)", dtype=truth.dtype, adapter_dtype=truth.adapter_dtype)
        life.run("layer.lora_A, other.lora_A = other.lora_A, layer.lora_A")
        life.run("layer.lora_B, other.lora_B = other.lora_B, layer.lora_B")
        life.rebind()
        truth.trainable |= set(ADAPTER)
        for name in ADAPTER:
            life.fill(name)


class Rescale(Operation):
    """Another scale."""

    name, keeps_graph = "scale", True

    def fits(self, now: Situation) -> bool:
        return not now.merged or now.unguarded

    def available(self, life: Any) -> bool:
        return isinstance(vars(life.layer).get("scale"), float | int)

    def act(self, life: Any) -> None:
        scale = next(s for s in (*SCALES[len(life.past) % 4 :], *SCALES) if s != life.truth.scale)
        life.run(f"layer.scale = {scale}")
        life.truth.scale = scale


class Initialise(Operation):
    """The adapter drawn again by the layer, which sets lora_B to zero; then new values in both."""

    name, needs = "init", "init_lora_weights"

    def fits(self, now: Situation) -> bool:
        return may_change("lora_A", now)

    def act(self, life: Any) -> None:
        life.run('layer.init_lora_weights("xavier")')
        life.require("not lora_B.any() and bool(lora_A.any())", "lora_B is not zero, or lora_A is")
        for name in ADAPTER:
            life.fill(name)


class Toggle(Operation):
    """A tensor that required grad no longer does, or the other way round."""

    def __init__(self, tensor: str) -> None:
        self.tensor, self.name = tensor, f"toggle-{tensor.removeprefix('lora_')}"

    def available(self, life: Any) -> bool:
        return self.tensor == "x" or self.tensor in life.truth.values

    def act(self, life: Any) -> None:
        life.truth.trainable ^= {self.tensor}
        if self.tensor != "x":
            life.run(f"{self.tensor}.requires_grad_({self.tensor in life.truth.trainable})")


class Hook(Operation):
    """A forward hook that negates the output, added or removed."""

    name, keeps_graph = "hook", True

    def act(self, life: Any) -> None:
        added = life.truth.sign > 0
        life.run("layer.register_forward_hook(negated)" if added else "layer._forward_hooks.clear()")
        life.truth.sign = -life.truth.sign


class Parametrise(Operation):
    """A weight that torch computes, W = 2 V, or a plain one again."""

    def __init__(self, name: str, base: str) -> None:
        self.name, self.base = name, base

    def fits(self, now: Situation) -> bool:
        return not now.merged and now.base != self.base

    def effect(self, now: Situation) -> Situation:
        return now.but(base=self.base)

    def available(self, life: Any) -> bool:
        return self.base == "plain" or "weight" in life.layer._parameters

    def act(self, life: Any) -> None:
        if self.base == "plain":
            life.run('parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)')
        else:
            life.run('parametrize.register_parametrization(layer, "weight", Doubled())')
        life.truth.factor = 1.0 if self.base == "plain" else 2.0
        life.rebind()


CHANGES = (
    *map(Fill, ("weight", "bias", *ADAPTER)),
    *map(Replace, ("weight", *ADAPTER)),
    Exchange(),
    Rescale(),
    Initialise(),
    *map(Toggle, ("x", "bias", *ADAPTER)),
    Hook(),
    Parametrise("parametrise", "parametrised"),
    Parametrise("deparametrise", "plain"),
)
