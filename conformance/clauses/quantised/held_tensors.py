"""Tensors that are held between the passes: in attributes of an autograd graph's nodes, in a layer, in closures."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Mapping
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import nn

DEEPEST, MOST = 10, 5000  # of a search: attributes of attributes, and objects in all
LEAVES = (str, bytes, int, float, complex, type, ModuleType, torch.dtype, torch.device, torch.Size, type(None))


def tensors_in(*roots: Any) -> Iterator[torch.Tensor]:
    """Every tensor that some objects reach through attributes, containers, bound arguments and closures."""
    waiting, seen = [(root, 0) for root in roots], set[int]()
    while waiting and len(seen) < MOST:
        thing, depth = waiting.pop()
        if id(thing) in seen or isinstance(thing, LEAVES):
            continue
        seen.add(id(thing))
        if isinstance(thing, torch.Tensor):
            yield thing
        if depth < DEEPEST:
            waiting += [(part, depth + 1) for part in _parts(thing)]


def _parts(thing: Any) -> Iterable[Any]:
    if isinstance(thing, Mapping):
        return list(thing.values())
    if isinstance(thing, list | tuple | set | frozenset):
        return list(thing)
    if isinstance(thing, functools.partial):
        return [thing.func, *thing.args, *thing.keywords.values()]
    if isinstance(thing, MethodType):
        return [thing.__self__]
    if isinstance(thing, FunctionType):
        cells = thing.__closure__ or ()
        return [cell.cell_contents for cell in cells if cell != type(cell)()] + list(thing.__defaults__ or ())
    slots = (getattr(thing, name, None) for kind in type(thing).__mro__ for name in getattr(kind, "__slots__", ()))
    return [*getattr(thing, "__dict__", {}).values(), *slots]


def nodes_of(y: torch.Tensor) -> Iterator[Any]:
    """Every node of a tensor's graph."""
    waiting: list[Any] = [y.grad_fn]
    seen = set[Any]()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            waiting += [following for following, _ in node.next_functions]


def plain_tensors(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The tensors with memory of their own in one: itself, or those that a wrapper, as torchao's are, consists of."""
    wrapper: Any = tensor
    if hasattr(type(tensor), "__tensor_flatten__"):  # the protocol by which torch.compile takes a wrapper apart
        for name in wrapper.__tensor_flatten__()[0]:
            yield from plain_tensors(getattr(wrapper, name))
    else:
        yield tensor


def memory_of(tensors: Iterable[torch.Tensor]) -> dict[int, tuple[int, torch.Tensor]]:
    """By the address of each memory that these tensors use, its bytes and a tensor in it."""
    found = {}
    for tensor in (plain for given in tensors for plain in plain_tensors(given)):
        storage = tensor.untyped_storage()
        if storage.nbytes():
            found[storage.data_ptr()] = (storage.nbytes(), tensor)
    return found


def owned(target: Any, module: nn.Module, *operands: torch.Tensor) -> dict[int, tuple[int, torch.Tensor]]:
    """The memory of a layer itself: its parameters and buffers, its stored fields, and these operands."""
    tensors = [*module.parameters(), *module.buffers(), *operands]
    if hasattr(target, "packed_fields"):
        tensors += target.packed_fields(module)["fields"].values()
    return memory_of(tensors)
