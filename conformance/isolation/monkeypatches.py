"""What a target replaces in torch, NumPy, Python and this suite: in force while the target runs, and only then.

An implementation that patches `torch.allclose` must not be judged by its own patch, and one that patches `F.linear`
must find it there. So originals are kept, replacements are taken out when the target's code returns, and put back
when it is called again.
"""

from __future__ import annotations

import builtins
import inspect
import math
import operator
import os
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import torch

from conformance.cases import memory_layout
from conformance.isolation.dict_version import Version
from conformance.judgement import error_pattern, judge, linear_oracle, outcomes
from conformance.numerics import formats

LIBRARIES: tuple[Any, ...] = (
    builtins,
    math,
    operator,
    random,
    np,
    np.linalg,
    np.random,
    torch,
    torch.Tensor,
    torch.autograd,
    torch.autograd.Function,
    torch.linalg,
    torch.nn,
    torch.nn.Linear,
    torch.nn.Module,
    torch.nn.functional,
    torch.nn.init,
    torch.optim,
    torch.random,
)
JUDGES: list[ModuleType] = [error_pattern, formats, judge, linear_oracle, memory_layout, outcomes]
FOLLOWING = ("Storage",)  # which torch itself replaces with the default dtype
GONE = object()  # in place of an attribute that is not there


def protect(module: str) -> None:
    """Keep the functions of a module that judges as they are, whatever a target replaces; called by the module."""
    JUDGES.append(sys.modules[module])


@dataclass
class Space:
    """A module or class, and its functions and classes as they were.

    Attributes:
        seen: the version of its dict at which it was last found to be the same.
    """

    owner: Any
    size: int
    names: tuple[str, ...]
    originals: tuple[Any, ...]
    values: Callable[[Any], tuple[Any, ...]]
    version: Version
    seen: int | None = None

    @classmethod
    def of(cls, owner: Any) -> Space:
        """Take it down as it is now."""
        every = ((name, value) for name, value in vars(owner).items() if name not in FOLLOWING)
        found = {name: value for name, value in every if callable(value) or isinstance(value, property)}
        # two keys at least: itemgetter gives a tuple only then
        names = (*found, *list(found)[:1] * 2)
        originals = tuple(found[name] for name in names)
        return cls(owner, len(vars(owner)), names, originals, operator.itemgetter(*names), Version(owner))

    def same(self) -> bool:
        """Whether nothing was replaced, added or deleted."""
        # asked after every call of the target, when most often nothing at all has changed
        now = self.version.number
        if now is not None and now == self.seen:
            return True
        here = vars(self.owner)
        try:
            same = len(here) == self.size and all(map(operator.is_, self.values(here), self.originals))
        except KeyError:
            return False
        if same:
            self.seen = now
        return same

    def changed(self) -> dict[str, tuple[Any, Any]]:
        """Name, original and replacement of what is not as it was."""
        if self.same():
            return {}
        here = vars(self.owner)
        pairs = zip(self.names, self.originals, strict=True)
        found = {name: (was, here.get(name, GONE)) for name, was in pairs if here.get(name, GONE) is not was}
        if isinstance(self.owner, type):  # a new attribute of a class replaces the one it inherited
            inherited = [
                name for name in here if name not in self.names and hasattr(super(self.owner, self.owner), name)
            ]
            found |= {name: (GONE, here[name]) for name in inherited if callable(here[name])}
        return found


@dataclass
class Pristine:
    """The originals of everything watched, what the target put in their place, and the settings it changed.

    Attributes:
        replaced: original and replacement, by index of the space and name.
        settings: what the import of the target changed.   left: what calls of it changed and was put back at once.
    """

    spaces: list[Space] = field(default_factory=list)
    replaced: dict[tuple[int, str], tuple[Any, Any]] = field(default_factory=dict)
    settings: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    depth: int = 0

    def begin(self) -> None:
        """Forget what was replaced; what is there now is the original."""
        self.spaces = [Space.of(owner) for owner in (*LIBRARIES, *JUDGES)]
        self.replaced, self.settings = {}, []

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """The target runs: its replacements are in force, and new ones are taken out afterwards."""
        self.depth += 1
        grad = torch.is_grad_enabled()
        if self.depth == 1 and self.replaced:
            for (index, name), (_, replacement) in self.replaced.items():
                _put(self.spaces[index].owner, name, replacement)
        try:
            yield
        finally:
            self.depth -= 1
            if self.depth == 0:
                self._withdraw()
            if torch.is_grad_enabled() != grad:  # the rest of the check could not go on
                self.left.append(f"grad mode from {grad} to {not grad}")
                torch._C._set_grad_enabled(grad)

    def names(self) -> list[str]:
        """What was replaced, as `torch.Tensor.add`."""
        return sorted({f"{name_of(self.spaces[index].owner)}.{name}" for index, name in self.replaced})

    def _withdraw(self) -> None:
        for index, space in enumerate(self.spaces):
            if space.same():
                continue
            for name, (original, replacement) in space.changed().items():
                if not _wrapped_by_its_owner(space.owner, original, replacement):
                    self.replaced[index, name] = original, replacement
                    _put(space.owner, name, original)
            if not space.same():  # what is still different is new, or the owner's own doing
                self.spaces[index] = Space.of(space.owner)


PRISTINE = Pristine()


def name_of(owner: Any) -> str:
    """The full name of a module or class."""
    return owner.__name__ if isinstance(owner, ModuleType) else f"{owner.__module__}.{owner.__qualname__}"


def _wrapped_by_its_owner(owner: Any, original: Any, replacement: Any) -> bool:
    """Whether a library wraps its own function, as torch does with `manual_seed` where torch._dynamo is imported.

    What torch._dynamo puts in place of `Module.__init__`, once it has compiled a module, says nothing of the original.
    """
    code = getattr(replacement, "__code__", None)
    package = sys.modules.get(name_of(owner).partition(".")[0])
    home = os.path.dirname(getattr(package, "__file__", None) or "?")
    if code is None or not code.co_filename.startswith(home):
        return False
    tagging = os.path.join(home, "_dynamo", "mutation_guard.py")
    return code.co_filename == tagging or inspect.unwrap(replacement) is original


def _put(owner: Any, name: str, value: Any) -> None:
    if value is GONE:
        delattr(owner, name)
    else:
        setattr(owner, name, value)
