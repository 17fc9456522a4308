"""A target's monkeypatches of torch, NumPy, Python and this suite: they are active only while the target runs.

An implementation that patches `torch.allclose` must not be judged by its own patch, but one that patches `F.linear`
needs its patch when it runs. So the originals are kept; patches are removed when the target's code returns, and
restored when it is called again.
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
from conformance.isolation.dict_version import COUNTED, Version
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
FOLLOWING = ("Storage",)  # names that torch itself replaces when the default dtype changes
GONE = object()  # stands for a missing attribute


def protect(module: str) -> None:
    """Protect the functions of a judging module from a target's patches; the module itself calls this function."""
    JUDGES.append(sys.modules[module])


@dataclass
class Space:
    """A module or class, and its original functions and classes.

    Attributes:
        seen: the version of its dict when it was last found unchanged.
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
        """Record the current functions and classes of a module or class."""
        every = ((name, value) for name, value in vars(owner).items() if name not in FOLLOWING)
        found = {name: value for name, value in every if callable(value) or isinstance(value, property)}
        # at least two keys, because itemgetter of one key does not return a tuple
        names = (*found, *list(found)[:1] * 2)
        originals = tuple(found[name] for name in names)
        return cls(owner, len(vars(owner)), names, originals, operator.itemgetter(*names), Version(owner))

    def same(self) -> bool:
        """Whether no attribute was replaced, added or deleted."""
        # this runs after every call of the target, and usually nothing has changed
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
        """Original and replacement of each changed attribute, by name."""
        if self.same():
            return {}
        here = vars(self.owner)
        pairs = zip(self.names, self.originals, strict=True)
        found = {name: (was, here.get(name, GONE)) for name, was in pairs if here.get(name, GONE) is not was}
        if isinstance(self.owner, type):  # a new attribute of a class overrides the inherited one
            inherited = [
                name for name in here if name not in self.names and hasattr(super(self.owner, self.owner), name)
            ]
            found |= {name: (GONE, here[name]) for name in inherited if callable(here[name])}
        return found


@dataclass
class Pristine:
    """The originals of all watched modules and classes, the target's patches, and the settings that it changed.

    Attributes:
        replaced: original and replacement, by index of the space and name.
        settings: settings that the import of the target changed.
        left: settings that calls of the target changed and that were restored at once.
    """

    spaces: list[Space] = field(default_factory=list)
    replaced: dict[tuple[int, str], tuple[Any, Any]] = field(default_factory=dict)
    settings: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    depth: int = 0

    def begin(self) -> None:
        """Forget all patches, and take the present functions and classes as the originals."""
        self.spaces = [Space.of(owner) for owner in (*LIBRARIES, *JUDGES)]
        self.replaced, self.settings = {}, []

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """A region in which the target runs: its patches are active inside, and new patches are removed at the end."""
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
            if torch.is_grad_enabled() != grad:  # the rest of the check needs the original mode
                self.left.append(f"grad mode from {grad} to {not grad}")
                torch.set_grad_enabled(grad)

    def names(self) -> list[str]:
        """The full names of the patched attributes, such as `torch.Tensor.add`."""
        return sorted({f"{name_of(self.spaces[index].owner)}.{name}" for index, name in self.replaced})

    def _withdraw(self) -> None:
        # usually nothing has changed; this runs some hundred thousand times in a run
        if COUNTED and [s.version.counter.value for s in self.spaces] == [s.seen for s in self.spaces]:  # type: ignore[union-attr]
            return
        for index, space in enumerate(self.spaces):
            if space.same():
                continue
            for name, (original, replacement) in space.changed().items():
                if not _wrapped_by_its_owner(space.owner, original, replacement):
                    self.replaced[index, name] = original, replacement
                    _put(space.owner, name, original)
            if not space.same():  # the remaining changes are new attributes, or made by the library itself
                self.spaces[index] = Space.of(space.owner)


PRISTINE = Pristine()


def name_of(owner: Any) -> str:
    """The full name of a module or class."""
    return owner.__name__ if isinstance(owner, ModuleType) else f"{owner.__module__}.{owner.__qualname__}"


def _wrapped_by_its_owner(owner: Any, original: Any, replacement: Any) -> bool:
    """Whether the library itself wraps its function, as torch wraps `manual_seed` when torch._dynamo is imported.

    `Module.__init__` needs a test of its own: the replacement by torch._dynamo, made once a module is compiled, does
    not refer to the original.
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
