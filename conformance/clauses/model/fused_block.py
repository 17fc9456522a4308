"""Fused blocks: modules that compute adapted layers without calling them, judged by what they take and return.

A library may compute an MLP or the projections of an attention as one operation on the weights of several adapted
layers. Such a layer is never called. The innermost module around it that is called is its *block*: its inputs,
outputs and gradients are recorded, and judged by the model's own code of that module in float64, in which each adapted
layer computes the formula. `sampled_rounding` says how far a right block may be from it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from conformance.clauses.model.sampled_rounding import SAMPLES, Float64, allowed_error
from conformance.judgement.linear_oracle import Expected
from conformance.numerics.budget import Rounding
from conformance.numerics.formats import dtype_named, numbers
from conformance.target.adapter_tensors import adapter_of


@dataclass
class BlockCall:
    """One call of a block: its inputs and outputs as lists of leaves, and after backward their gradients.

    Attributes:
        layers: the names of the adapted layers in the block that the call computed without calling them.
    """

    layers: tuple[str, ...]
    structure: Any
    inputs: list[Any]
    outputs: list[Tensor] = field(default_factory=list)
    g: dict[int, Tensor] = field(default_factory=dict)
    dx: dict[int, Tensor] = field(default_factory=dict)
    wants_dx: tuple[int, ...] = ()


class BlockWatch:
    """Hooks on every module around adapted layers, which record the calls that fuse some of them.

    Attributes:
        calls: the recorded calls, by the name of the block.
    """

    def __init__(self, model: nn.Module, layers: Iterable[str]) -> None:
        self.layers = tuple(layers)
        self.calls: dict[str, list[BlockCall]] = {}
        self._open: list[tuple[BlockCall, set[str]]] = []
        around = {name[:i] for name in self.layers for i, letter in enumerate(name) if letter == "."} | {""}
        self.handles: list[Any] = []
        for path in around:
            module = model.get_submodule(path)
            inside = {name for name in self.layers if name.startswith(f"{path}." if path else "")}
            inside -= {name for name in inside if _is_routed(name, path)}
            self.handles.append(module.register_forward_pre_hook(self._before(inside), with_kwargs=True))
            self.handles.append(module.register_forward_hook(self._after(path)))

    def called(self, name: str) -> None:
        """Note that a layer is called, so that the modules around it do not fuse it in this call of theirs."""
        for _, missing in self._open:
            missing.discard(name)

    def _before(self, inside: set[str]) -> Callable[..., Any]:
        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            leaves, structure = tree_flatten((args, kwargs))
            kept = [leaf.detach().clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            call = BlockCall((), structure, kept)
            for i, leaf in enumerate(leaves):
                if isinstance(leaf, Tensor) and leaf.requires_grad:
                    leaves[i] = leaf.view_as(leaf)  # a view for this call alone, as for a layer
                    leaves[i].register_hook(lambda gradient, i=i: call.dx.update({i: gradient.detach().clone()}))
                    call.wants_dx += (i,)
            self._open.append((call, set(inside)))
            return tree_unflatten(leaves, structure)

        return before

    def _after(self, path: str) -> Callable[..., Any]:
        def after(_: nn.Module, __: Any, output: Any) -> Any:
            call, missing = self._open.pop()
            if not missing:
                return None
            call.layers = tuple(name for name in self.layers if name in missing)
            for name in call.layers:
                self.called(name)
            self.calls.setdefault(path, []).append(call)
            return with_floats(output, [_recorded(call, i, y) for i, y in enumerate(floats(output))])

        return after


def _recorded(call: BlockCall, i: int, y: Tensor) -> Tensor:
    """An output whose value and gradient the call records.

    It is a view, because one output may be computed from another, as an attention's output is from its weights: the
    gradient of the view comes from outside the block alone.
    """
    call.outputs.append(y.detach().clone())
    if y.requires_grad:
        y = y.view_as(y)
        y.register_hook(lambda gradient: call.g.update({i: gradient.detach().clone()}))  # type: ignore[no-untyped-call]
    return y


def _is_routed(name: str, around: str) -> bool:
    """Whether a layer is one of several experts of a module: without a token it is not called, and that is right."""
    parts = name.split(".")
    return "experts" in parts and len(around.split(".")) <= parts.index("experts") + 1


def floats(output: Any) -> list[Tensor]:
    """The floating-point tensors in the output of a module, in order."""
    return [leaf for leaf in tree_flatten(output)[0] if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def with_floats(output: Any, values: list[Tensor]) -> Any:
    """The output of a module with other values of its floating-point tensors."""
    leaves, structure = tree_flatten(output)
    others = iter(values)
    return tree_unflatten([next(others) if _is_float(leaf) else leaf for leaf in leaves], structure)


@dataclass
class BlockOracle:
    """The expected outputs and gradients of one call of a block.

    Args:
        plain: the same module of the model without adapters.
        layers: the adapted layers in the block, by their names within it; `fused` are those that were not called.
        autocast: the dtype of the autocast region, or `off`.
    """

    path: str
    plain: nn.Module
    layers: dict[str, Any]
    call: BlockCall
    scale: float
    autocast: str = "off"

    def __post_init__(self) -> None:
        self.dtype = next(iter(self.layers.values())).weight.dtype
        self.computed_in = self.dtype if self.autocast == "off" else dtype_named(self.autocast)
        how = Rounding(self.computed_in, self.computed_in)
        prefix = f"{self.path}." if self.path else ""
        self.fused = tuple(name.removeprefix(prefix) for name in self.call.layers)
        self.plain = float64_copy(self.plain, self.computed_in)
        self.exact = self._run(Float64())
        self.samples = [self._run(Float64(how, seed)) for seed in range(SAMPLES)]
        self.lacking = {name: self._run(Float64(), without=name) for name in self.fused}

    def expected(self, key: tuple[str, int | str], name: str, dtype: torch.dtype) -> Expected:
        """An output, `("y", 0)`, the gradient of an input, `("x", 0)`, or of an adapter, `("lora_A", layer)`."""
        value = numbers(self.exact[key])
        samples = [numbers(sample[key]) for sample in self.samples]
        terms = {f"{layer} adapter": value - numbers(found[key]) for layer, found in self.lacking.items()}
        # a term must be one that the result depends on, and not the whole result
        terms = {term: part for term, part in terms.items() if part.any() and (part != value).any()}
        label = f"{self.path or 'the model'}: {name}"
        return Expected(label, value, allowed_error(value, samples, dtype), dtype, terms, certified=bool(value.any()))

    def _run(self, mode: Float64, without: str = "") -> dict[tuple[str, int | str], Tensor]:
        block = copy.deepcopy(self.plain)
        adapters = {}
        for name, layer in self.layers.items():
            A, B = (self._wide(adapter_of(layer, part)).requires_grad_() for part in ("lora_A", "lora_B"))
            adapters[name] = (A, B)
            if name != without:
                block.get_submodule(name).register_forward_hook(_adding(A, B, self.scale))
        leaves = [self._wide(leaf) if _is_float(leaf) else leaf for leaf in self.call.inputs]
        for i in self.call.wants_dx:
            leaves[i].requires_grad_()
        args, kwargs = tree_unflatten(leaves, self.call.structure)
        with torch.enable_grad(), torch.autocast(_device_of(leaves), enabled=False), mode:
            outputs = floats(block(*args, **kwargs))
            found: dict[tuple[str, int | str], Tensor] = {("y", i): y.detach() for i, y in enumerate(outputs)}
            reached = [i for i in self.call.g if outputs[i].requires_grad]
            if reached:
                gs = [self.call.g[i].double() for i in reached]
                torch.autograd.backward([outputs[i] for i in reached], gs)
        for name, (A, B) in adapters.items():
            found["lora_A", name], found["lora_B", name] = (_gradient(part) for part in (A, B))
        for i in self.call.wants_dx:
            found["x", i] = _gradient(leaves[i])
        return found

    def _wide(self, tensor: Tensor) -> Tensor:
        """A leaf in float64, rounded to the dtype of an autocast region first."""
        return tensor.detach().to(self.computed_in).double()


def _device_of(leaves: list[Any]) -> str:
    """The type of the device of the first tensor."""
    return next((leaf.device.type for leaf in leaves if isinstance(leaf, Tensor)), "cpu")


def _adding(A: Tensor, B: Tensor, scale: float) -> Callable[..., Tensor]:
    linear = nn.functional.linear
    return lambda _, args, y: y + scale * linear(linear(args[0], A), B)


def _gradient(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad


def _is_float(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def float64_copy(module: nn.Module, computed_in: torch.dtype) -> nn.Module:
    """A frozen float64 copy of a module, whose linear layers have the values that they are computed with."""
    wide = copy.deepcopy(module).double().requires_grad_(False)
    for layer in wide.modules():
        for parameter in layer.parameters(recurse=False) if isinstance(layer, nn.Linear) else ():
            parameter.copy_(parameter.to(computed_in))
    return wide
