"""A layer in torch's wrappers for several ranks, built on each rank from the same operands."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from conformance.cases.operands import Operands
from conformance.judgement.outcomes import require
from conformance.target.adapter_tensors import adapter_of
from conformance.target.calls import calling
from conformance.target.subject import TRAINABLE, Instance, Subject

ADAPTER = ("lora_A", "lora_B")


def wrapped(subject: Subject, operands: Operands, strategy: str, needs: Sequence[str] = TRAINABLE) -> Instance:
    """The layer under DistributedDataParallel (`ddp`) or `fully_shard` (`fsdp`), with this rank's x only.

    With `fsdp` the layer is sharded inside a sharded model, like a block of a transformer, so that its parameters are
    freed between forward and backward.
    """
    instance = subject.build(operands)
    instance.require_grad(needs)
    layer = instance.module
    if strategy == "ddp":
        with calling("DistributedDataParallel(layer)"):
            instance.call = nn.parallel.DistributedDataParallel(layer)
    else:
        from torch.distributed.fsdp import fully_shard

        ranks: Any = torch.distributed
        mesh = mesh_of(ranks.get_world_size())  # without a mesh fully_shard would use a GPU if there is one
        with calling("fully_shard(layer)"):
            model = nn.Sequential(layer)
            fully_shard(layer, mesh=mesh)
            fully_shard(model, mesh=mesh)
            instance.call = model
    refresh(instance)
    return instance


def split(subject: Subject, operands: Operands, style: str, world: int, needs: Sequence[str] = TRAINABLE) -> Instance:
    """The layer after `parallelize_module` with the target's style, `colwise` or `rowwise`; every rank has all of x."""
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import parallelize_module

    instance = subject.build(operands)
    instance.require_grad(needs)
    mesh = mesh_of(world)
    name = f"{style}_parallel_lora"
    layouts = {"input_layouts": Replicate()} if style == "rowwise" else {}
    with calling(f"parallelize_module(layer, mesh, {name}())"):
        instance.call = parallelize_module(instance.module, mesh, getattr(subject.target, name)(**layouts))
    refresh(instance)
    return instance


@lru_cache
def mesh_of(*shape: int) -> Any:
    """The mesh of all ranks in this shape; cached, because its process groups stay open."""
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh("cpu", shape)


def refresh(instance: Instance) -> None:
    """Read the layer's parameters again, because wrapping replaces them."""
    layer = instance.module
    with calling("reading lora_A and lora_B of the wrapped layer"):
        found = {"weight": layer.weight, **{name: adapter_of(layer, name) for name in ADAPTER}}
        if layer.bias is not None:
            found["bias"] = layer.bias
    instance.tensors |= found


def whole(tensor: Any, what: str) -> torch.Tensor:
    """The whole tensor, gathered from all shards; every rank must call this."""
    require(isinstance(tensor, torch.Tensor), f"{what} is {tensor!r}: expected a tensor")
    if hasattr(tensor, "full_tensor"):
        with calling(f"{what}.full_tensor()"):
            tensor = tensor.full_tensor()
    return tensor.detach().clone()  # type: ignore[no-any-return]


def gradients(instance: Instance, names: Sequence[str] = ADAPTER) -> dict[str, torch.Tensor]:
    """The whole gradients of these parameters, by name."""
    found = {}
    for name in names:
        gradient = instance.gradient(name)
        require(gradient is not None, f"the gradient of {name} is None after backward")
        found[name] = whole(gradient, f"the gradient of {name}")
    return found


def step(instance: Instance) -> dict[str, torch.Tensor]:
    """Run forward and backward once: y, and the gradients of x and of the whole adapter."""
    y = instance.forward()
    instance.backward(y)
    dX = instance.gradient("x")
    require(dX is not None, "the gradient of x is None after backward")
    assert dX is not None
    return {"y": y.detach().clone(), "x": dX.detach().clone(), **gradients(instance)}


@contextlib.contextmanager
def without_sync(instance: Instance, strategy: str) -> Any:
    """A region in which gradients accumulate on each rank without synchronisation."""
    if strategy == "ddp":
        with instance.call.no_sync():  # type: ignore[attr-defined]
            yield
        return
    instance.call.set_requires_gradient_sync(False)  # type: ignore[attr-defined]
    yield
    instance.call.set_requires_gradient_sync(True)  # type: ignore[attr-defined]
