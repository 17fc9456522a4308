"""Whose code a function or a class is, and the name by which users of torch call what is torch's."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import nn

from conformance.reproducer.literals import Unsayable
from conformance.specification.groups import PACKAGE

SUITE = tuple(f"{name}." for name in (PACKAGE.partition(".")[0], "loraspec"))
DEEPER = (  # parts of torch that `import torch` does not import
    "torch.distributed.tensor",
    "torch.distributed.tensor.parallel",
    "torch.distributed.fsdp",
    "torch.distributed.device_mesh",
    "torch.distributed.checkpoint",
    "torch.distributed.checkpoint.state_dict",
)
PLAIN = (
    "torch.nn",
    "torch",
    "torch.nn.functional",
    "torch.optim",
    "torch.nn.init",
    "torch.autograd",
    "torch.nn.parallel",
)
NAMESPACES = (*PLAIN, "torch.distributed", *DEEPER)
PLAIN_LIBRARIES = ("numpy",)


_wrappers: set[str] = set()  # modules of targets that need the suite: what they call is the target's


@contextmanager
def wrapper(target: Any) -> Iterator[bool]:
    """A region in which the code of a target's module counts as the suite's, if the module needs the suite.

    The region's value is whether it does.
    """
    module = target if isinstance(target, ModuleType) else None
    used = [getattr(value, "__module__", None) or "" for value in vars(module).values()] if module else []
    is_wrapper = module is not None and any(f"{name}.".startswith(SUITE) for name in used)
    names = {module.__name__} if module is not None and is_wrapper else set()
    _wrappers.update(names)
    _whose.cache_clear()
    try:
        yield is_wrapper
    finally:
        _wrappers.difference_update(names)
        _whose.cache_clear()


def owner_of(thing: Any) -> str:
    """Whose code a function, class or method is: `python` (NumPy included), `torch`, `suite` or `target`."""
    if isinstance(thing, nn.Module):
        place = type(thing).__module__
        return "torch" if place.startswith(PACKAGE) else _whose(place)
    bound = getattr(thing, "__self__", None)
    if isinstance(bound, torch.Tensor):
        return "torch"
    module = getattr(thing, "__module__", None)
    if module is None and bound is not None:
        module = type(bound).__module__ if not isinstance(bound, ModuleType) else bound.__name__
    module = module or getattr(type(thing), "__module__", "") or ""
    if isinstance(bound, nn.Module) and module.startswith(PACKAGE):
        return "torch"
    return _whose(module)


@cache
def _whose(module: str) -> str:
    first = module.partition(".")[0]
    if first == "torch":
        return "torch"
    if module.startswith(SUITE) or module in _wrappers:
        return "suite"
    plain = first in PLAIN_LIBRARIES or first in sys.stdlib_module_names or first == "builtins"
    return "python" if plain else "target"


@cache
def public_name(function: Any) -> str:
    """The name by which torch's users call a function or a class of torch."""
    name = getattr(function, "__name__", "")
    for space in NAMESPACES:
        if getattr(sys.modules.get(space), name, None) is function:
            return f"{space}.{name}"
    module = getattr(function, "__module__", None)
    if not module or "<" in name:
        raise Unsayable(f"the function {name}")
    return f"{module}.{getattr(function, '__qualname__', name)}"
