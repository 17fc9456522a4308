"""Probes of a model's adapted layers: they record each layer's inputs, outputs and gradients, and judge them.

A layer is judged with the input and the upstream gradient that it received in the model. Its error budget is then that
of one layer, and no tolerance has to cover how a whole model amplifies a rounding error.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from conformance.cases.linear_case import LinearCase
from conformance.cases.operands import Operands
from conformance.clauses.model.architectures import TRANSPOSED
from conformance.clauses.model.fused_block import BlockCall, BlockOracle, BlockWatch
from conformance.clauses.model.target_calls import require_adapter
from conformance.judgement.judge import judge, worst
from conformance.judgement.linear_oracle import Expected, LinearOracle
from conformance.judgement.outcomes import Violation, require
from conformance.numerics.formats import dtype_named, numbers, rounded
from conformance.target.adapter_tensors import adapter_of

SCALE = 2.0  # the scale of every adapter here, see `RealCase.options`


@dataclass
class Call:
    """One call of a layer: its input and output, and after backward their gradients."""

    x: Tensor
    y: Tensor | None = None
    g: Tensor | None = None
    dx: Tensor | None = None
    wants_dx: bool = False


@dataclass
class Watched:
    """The watched layers and their calls in order, by the layers' names, and the calls of blocks that fuse layers."""

    layers: dict[str, Any]
    calls: dict[str, list[Call]] = field(default_factory=dict)
    blocks: dict[str, list[BlockCall]] = field(default_factory=dict)

    @property
    def fused(self) -> set[str]:
        """The layers that a block computed without calling them."""
        return {name for calls in self.blocks.values() for call in calls for name in call.layers}

    def answered(self, name: str) -> list[Call]:
        """The calls of a layer that backward reached; recomputation adds other calls."""
        return [call for call in self.calls[name] if call.g is not None]


@torch.no_grad()
def fill(model: nn.Module, names: Iterable[str], seed: int) -> None:
    """Give the adapters of these layers values that make the update as large as the base product."""
    generator = torch.Generator().manual_seed(seed)
    for name in names:
        layer = require_adapter(model.get_submodule(name), name)
        down, up = adapter_of(layer, "lora_A"), adapter_of(layer, "lora_B")
        for part, width in ((down, down.shape[1]), (up, 4)):
            part.copy_(torch.randn(part.shape, generator=generator) / width**0.5)


@contextmanager
def watching(model: nn.Module, names: Iterable[str], fused: bool = True) -> Iterator[Watched]:
    """Watch these layers of a model within the block.

    Args:
        fused: whether modules may compute some of them without calling them.
    """
    layers = {name: require_adapter(model.get_submodule(name), name) for name in names}
    around = BlockWatch(model, layers if fused else ())
    watched = Watched(layers, {name: [] for name in layers}, around.calls)
    handles = [handle for name, layer in layers.items() for handle in _hooks(layer, watched.calls[name])]
    handles += around.handles
    for name, layer in layers.items():
        handles.append(layer.register_forward_pre_hook(lambda *_, name=name: around.called(name)))
    try:
        yield watched
    finally:
        for handle in handles:
            handle.remove()


def _hooks(layer: nn.Module, calls: list[Call]) -> list[Any]:
    def before(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        call = Call(args[0].detach().clone(), wants_dx=args[0].requires_grad)
        calls.append(call)
        x = args[0]
        if x.requires_grad:
            x = x.view_as(x)  # a view for this layer alone: its gradient is this layer's dX and includes no other
            x.register_hook(lambda gradient: setattr(call, "dx", gradient.detach().clone()))
        return (x, *args[1:])

    def after(_: nn.Module, __: Any, y: Any) -> None:
        call = calls[-1]
        require(isinstance(y, Tensor), f"an adapted layer returned a {type(y).__name__}: expected a tensor")
        call.y = _kept(y.detach())
        if y.requires_grad:
            y.register_hook(lambda gradient: setattr(call, "g", gradient.detach().clone()))

    return [layer.register_forward_pre_hook(before), layer.register_forward_hook(after)]


def _kept(y: Tensor) -> Tensor:
    """A copy with the same strides, because the rounding of later operations may depend on them."""
    if 0 in y.stride() or not y.numel():
        return y.clone()
    return torch.empty_strided(y.shape, y.stride(), dtype=y.dtype, device=y.device).copy_(y)


class Met(Operands):
    """The operands of a layer's call within a model, in place of drawn ones.

    Args:
        layer: a module with weight, bias, lora_A and lora_B.   call: one of its calls.
        autocast: the dtype of the autocast region, or `off`.   transposed: whether the weight is [in, out].
    """

    def __init__(self, layer: Any, call: Call, autocast: str, transposed: bool) -> None:
        rows = call.x.reshape(-1, call.x.shape[-1])
        up, down = adapter_of(layer, "lora_B"), adapter_of(layer, "lora_A")
        self.dtype, self.adapter_dtype = call.x.dtype, down.dtype
        self.case = LinearCase(
            m=len(rows),
            k=rows.shape[1],
            n=up.shape[0],
            r=up.shape[1],
            scale=SCALE,
            bias=layer.bias is not None,
            dtype=str(self.dtype).removeprefix("torch."),
            values="normal",
            special="none" if up.any() else "zero-B",
            autocast=autocast,
        )
        self.device, self.scale, self.shape = str(rows.device), SCALE, (len(rows), up.shape[0])
        self.computed_in = self.dtype if autocast == "off" else dtype_named(autocast)
        g = rows.new_zeros(self.shape) if call.g is None else call.g.reshape(self.shape)
        weight = layer.weight.t() if transposed else layer.weight
        met = {"x": rows, "g": g, "weight": weight, "bias": layer.bias, "lora_A": down, "lora_B": up}
        self.values = {name: numbers(t) for name, t in met.items() if t is not None}
        if autocast != "off":
            self.values = {name: rounded(value, self.computed_in) for name, value in self.values.items()}


def judge_outputs(watched: Watched, plain: nn.Module) -> float | None:
    """Judge the output of every call of a layer, and of every block that fuses layers of the plain model."""
    ratios = []
    for path, oracle in _block_oracles(watched, plain):
        for i, y in enumerate(oracle.call.outputs):
            ratios.append(_judged_block(y, oracle.expected(("y", i), "y", _dtype_of(oracle, y)), path, oracle))
    for name, layer in watched.layers.items():
        for call in watched.calls[name]:
            if call.x.numel():
                require(call.y is not None, f"{name} was called and did not return")
                ratios.append(
                    judge(call.y, _named(LinearOracle(Met(layer, call, "off", name in TRANSPOSED)).y, name, call.x))
                )
    return worst(*ratios)


def judge_gradients(watched: Watched, plain: nn.Module, autocast: str = "off") -> float | None:
    """Judge each layer's dA and dB, summed over its calls and those of blocks, and the dX of each call."""
    require_used(watched)
    ratios = [*_judged_blocks(watched, plain, autocast)]
    for name, layer in watched.layers.items():
        if name in watched.fused:
            continue
        calls = [call for call in watched.answered(name) if call.x.numel()]
        oracles = [LinearOracle(Met(layer, call, autocast, name in TRANSPOSED)) for call in calls]
        for part in ("lora_A", "lora_B"):
            gradient = adapter_of(layer, part).grad
            if not calls:  # an expert that received no token
                met = any(call.x.numel() for call in watched.calls[name])
                require(not met, f"{name} was used and no gradient reached its output")
                require(gradient is None or not gradient.any(), f"{name} was not used and has a gradient of {part}")
                continue
            require(gradient is not None, f"{name}.{part}.weight got no gradient")
            ratios.append(judge(gradient, _summed([oracle.gradient(part) for oracle in oracles], name)))
        for call, oracle in zip(calls, oracles, strict=True):
            if call.wants_dx:
                ratios.append(judge(call.dx, _named(oracle.dX, name, call.x)))
    return worst(*ratios)


def _block_oracles(watched: Watched, plain: nn.Module, autocast: str = "off") -> Iterator[tuple[str, BlockOracle]]:
    for path, calls in watched.blocks.items():
        prefix = f"{path}." if path else ""
        inside = {name.removeprefix(prefix): layer for name, layer in watched.layers.items() if name.startswith(prefix)}
        for call in calls:
            yield path, BlockOracle(path, plain.get_submodule(path), inside, call, SCALE, autocast)


def _dtype_of(oracle: BlockOracle, y: Tensor) -> torch.dtype:
    return oracle.dtype if oracle.autocast == "off" else y.dtype


def _judged_blocks(watched: Watched, plain: nn.Module, autocast: str) -> Iterator[float]:
    """Judge the gradients of blocks: dX of each call, dA and dB of each layer in them, summed over all calls."""
    parts: dict[tuple[str, str], list[Expected]] = {}
    last: dict[str, tuple[str, BlockOracle]] = {}
    for path, oracle in _block_oracles(watched, plain, autocast):
        if not oracle.call.g:
            continue  # a first pass under checkpointing
        for i in oracle.call.wants_dx:
            expected = oracle.expected(("x", i), "dX", oracle.call.inputs[i].dtype)
            yield _judged_block(oracle.call.dx.get(i), expected, path, oracle)
        for inner, layer in oracle.layers.items():
            name = f"{path}.{inner}" if path else inner
            last[name] = path, oracle
            for part, symbol in (("lora_A", "dA"), ("lora_B", "dB")):
                dtype = adapter_of(layer, part).dtype
                parts.setdefault((name, part), []).append(oracle.expected((part, inner), f"{symbol} of {inner}", dtype))
    for name in watched.fused:
        require(name in last, f"{name} was used by a block that fuses it, and no gradient reached the block's output")
    for (name, part), found in parts.items():
        if name in watched.fused:
            called = [
                LinearOracle(Met(watched.layers[name], c, autocast, name in TRANSPOSED)) for c in watched.answered(name)
            ]
            gradient = adapter_of(watched.layers[name], part).grad
            everything = [*found, *(oracle.gradient(part) for oracle in called)]
            yield _judged_block(gradient, _summed(everything, ""), *last[name])


def _judged_block(actual: Any, expected: Expected, path: str, oracle: BlockOracle) -> float:
    """Judge a result of a block; a violation says that the block was judged as a whole, and why."""
    try:
        return judge(actual, expected)
    except Violation as violation:
        why = "".join(f"\n         {name} has an adapter and the model did not call it" for name in oracle.call.layers)
        said = f"{violation}\nblock    {path or 'the model'} was judged as a whole:{why}"
        raise Violation(said, violation.ratio) from None


def require_used(watched: Watched) -> None:
    """Require that the model called every adapted layer, or a block that may fuse it; experts need a token for that."""
    for name, calls in watched.calls.items():
        used = bool(calls) or name in watched.fused or "experts" in name.split(".")
        require(used, f"{name} has an adapter and the model did not call it")


def _named(expected: Expected, name: str, like: Tensor) -> Expected:
    """The expected value with the layer's name and the leading dimensions of x."""
    shape = (*like.shape[:-1], expected.value.shape[-1])
    return dataclasses.replace(
        expected,
        name=f"{name}: {expected.name}",
        value=expected.value.reshape(shape),
        budget=None if expected.budget is None else expected.budget.reshape(shape),
        terms={term: part.reshape(shape) for term, part in expected.terms.items()},
    )


def _summed(parts: list[Expected], name: str) -> Expected:
    """A gradient accumulated over several calls: the budget covers the rounding of each part and each partial sum."""
    values = np.cumsum([part.value for part in parts], axis=0)
    unit = torch.finfo(parts[0].dtype).eps / 2
    allowed = sum(part.budget for part in parts if part.budget is not None)
    return dataclasses.replace(
        parts[0],
        name=f"{name}: {parts[0].name}" if name else parts[0].name,
        value=values[-1],
        budget=np.asarray(allowed + unit * np.abs(values[1:]).sum(0)),
        terms={},
    )
