"""A small module of experts with the case's numbers, adapted by the target, and one call of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from conformance.cases.reproducer_marks import draws_values
from conformance.clauses.experts.mixture_case import MixtureCase, routes
from conformance.clauses.experts.small_experts import KINDS, SmallExperts
from conformance.judgement.outcomes import require
from conformance.judgement.recording import note
from conformance.numerics.budget import Rounding
from conformance.numerics.formats import Array, dtype_named, rounded
from conformance.target.calls import calling
from conformance.target.subject import Subject, poisoned_memory


@draws_values
def drawn(case: MixtureCase) -> dict[str, Array]:
    """The numbers of a case: tokens, router weights, upstream gradient, and by projection weight, bias, A and B."""
    random = np.random.default_rng([case.seed, case.m, case.k, case.n, case.r, case.experts])
    wide = case.n if case.kind == "ungated" else 2 * case.n
    first = KINDS[case.kind].first
    values = {
        "x": random.standard_normal((case.m, case.k)),
        "p": random.uniform(0.25, 1.0, (case.m, case.slots)),
        "g": random.standard_normal((case.m, case.k)),
    }
    for name, n, k in ((first, wide, case.k), ("down_proj", case.k, case.n)):
        values[f"{name}.weight"] = random.standard_normal((case.experts, n, k)) / np.sqrt(k)
        if KINDS[case.kind].has_bias:
            values[f"{name}.bias"] = random.standard_normal((case.experts, n))
        values[f"{name}.lora_A"] = random.standard_normal((case.experts, case.r, k)) / np.sqrt(k)
        values[f"{name}.lora_B"] = random.standard_normal((case.experts, n, case.r)) / (np.sqrt(case.r) * case.scale)
    return values


class Mixture:
    """The exact numbers of a case, and tensors of them.

    Attributes:
        names: the first projection and the second.   adapted: those that have an adapter.
    """

    def __init__(self, case: MixtureCase, device: str = "cpu") -> None:
        self.case, self.device = case, device
        self.dtype = dtype_named(case.dtype)
        self.adapter_dtype = self.dtype if case.adapter == "same" else dtype_named(case.adapter)
        self.names = (KINDS[case.kind].first, "down_proj")
        self.adapted: tuple[str, ...] = self.names
        self.values = {name: rounded(v, self._holds(name)) for name, v in drawn(case).items()}
        self.index = routes(case)
        self.present = (self.index >= 0) & (self.index < case.experts)

    def _holds(self, name: str) -> torch.dtype:
        return self.adapter_dtype if "lora_" in name else self.dtype

    @property
    def rounding(self) -> Rounding:
        """The roundings that the budget of this case allows."""
        return Rounding(self.dtype, self.adapter_dtype)

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor of one operand."""
        return torch.from_numpy(self.values[name].copy()).to(self.device, self._holds(name))

    @cached_property
    def experts(self) -> SmallExperts:
        """The module of experts before it is adapted."""
        case = self.case
        module = KINDS[case.kind](case.experts, case.k, case.n, case.slots, self.dtype).to(self.device)
        with torch.no_grad():
            for name in self.names:
                weight = self.tensor(f"{name}.weight")
                getattr(module, name).copy_(weight.mT if module.is_transposed else weight)
                if module.has_bias:
                    getattr(module, f"{name}_bias").copy_(self.tensor(f"{name}.bias"))
        return module


@dataclass
class Adapted:
    """A module that the target has adapted, with the adapters of the case."""

    subject: Subject
    mixture: Mixture
    module: Any
    x: torch.Tensor
    p: torch.Tensor

    def adapters(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """A [E, r, K] and B [E, N, r] of each projection."""
        return adapters_of(self.subject, self.module, self.mixture.adapted)

    def forward(self) -> torch.Tensor:
        """Run the module once."""
        index = torch.from_numpy(self.mixture.index.copy()).to(self.mixture.device)
        with poisoned_memory(), calling("the forward pass"):
            y: Any = self.module(self.x, index, self.p)
        require(isinstance(y, torch.Tensor), f"the forward pass returned {type(y).__name__}: expected a tensor")
        return y  # type: ignore[no-any-return]

    def backward(self, y: torch.Tensor) -> None:
        """Run backward from the case's upstream gradient."""
        require(y.requires_grad, "the output does not require grad although an adapter does")
        require(tuple(y.shape) == self.mixture.values["g"].shape, f"y has shape {list(y.shape)}: expected x's")
        with poisoned_memory(), calling("the backward pass"):
            torch.autograd.backward([y], [self.mixture.tensor("g").to(y.dtype)])

    def gradients(self) -> dict[str, torch.Tensor | None]:
        """The gradients by the names of the operands; None where there is none."""
        found: dict[str, torch.Tensor | None] = {"x": self.x.grad, "p": self.p.grad}
        named = getattr(self.subject.target, "expert_gradients", None)
        with calling("reading the gradients of the adapters"):
            pairs = named(self.module) if named else {n: (a.grad, b.grad) for n, (a, b) in self.adapters().items()}
        for name in self.mixture.adapted:
            found[f"{name}.lora_A"], found[f"{name}.lora_B"] = pairs[name]
        return found


def adapters_of(subject: Subject, module: Any, names: Any) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """A [E, r, K] and B [E, N, r] of these projections, from the module or the target's `expert_adapters`."""
    named: Callable[[Any], Any] | None = getattr(subject.target, "expert_adapters", None)
    with calling("reading the adapters of the experts"):
        found = named(module) if named else {name: (module.lora_A[name], module.lora_B[name]) for name in names}
    for name in names:
        require(name in found, f"the module has no adapter on {name}: it has {', '.join(found) or 'none'}")
    return {name: found[name] for name in names}


def patched(subject: Subject, mixture: Mixture, **options: Any) -> Any:
    """The case's module, adapted by the target."""
    note(options={})
    case = mixture.case
    alpha = case.scale * case.r
    given: dict[str, Any] = {"dim": case.r, "alpha": int(alpha) if float(alpha).is_integer() else alpha, **options}
    if mixture.adapter_dtype != mixture.dtype:
        given["lora_dtype"] = mixture.adapter_dtype
    with calling(f"patch_moe_module({', '.join(f'{k}={v}' for k, v in given.items())})"):
        return subject.thing(mixture.experts, **given)


def adapted(subject: Subject, mixture: Mixture, *, fresh: bool = False, **options: Any) -> Adapted:
    """The case's module with its adapters, and leaves for the tokens and the router's weights.

    Args:
        fresh: leave the adapters as the target made them.
        options: further keyword arguments of `patch_moe_module`.
    """
    module = patched(subject, mixture, **options)
    x, p = mixture.tensor("x").requires_grad_(), mixture.tensor("p")
    p[torch.from_numpy(~mixture.present)] = float("nan")
    instance = Adapted(subject, mixture, module, x, p.requires_grad_())
    for name, pair in ({} if fresh else instance.adapters()).items():
        for side, parameter in zip(("lora_A", "lora_B"), pair, strict=True):
            values = mixture.tensor(f"{name}.{side}")
            require(
                parameter.shape == values.shape,
                f"{side} of {name} has shape {list(parameter.shape)}: expected {list(values.shape)}",
            )
            require(parameter.dtype == values.dtype, f"{side} of {name} is {parameter.dtype}: expected {values.dtype}")
            with torch.no_grad():
                parameter.copy_(values)
    return instance
