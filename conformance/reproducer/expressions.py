"""Expressions: the code by which a script refers to an object of the check, or makes one that is equal."""

from __future__ import annotations

import ast
import dataclasses
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePath
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

import reference
from conformance.cases.case import Case
from conformance.reproducer.code_owner import owner_of, public_name
from conformance.reproducer.literals import Unsayable, tensor_literal
from conformance.specification.groups import PACKAGE

REFERENCE = reference.__name__


class Objects(Protocol):
    """What gives the code for objects that the suite makes; see `SuiteObjects`."""

    def case(self, value: Case) -> ast.expr:
        """The code for a case."""

    def is_made(self, value: Any) -> bool:
        """Whether it is known how an object was made."""

    def made(self, value: Any) -> ast.expr:
        """The code for an object that is made again."""

    def local_function(self, function: FunctionType) -> ast.expr:
        """The code for a function defined within another one."""


class Expressions:
    """The code for each object that is known so far; a call gives the code for an object.

    Args:
        leaf: takes a tensor that is not known, and returns the variable that will hold it.
    """

    def __init__(self, subject: Any, leaf: Callable[[torch.Tensor, str], str]) -> None:
        self.subject, self.leaf = subject, leaf
        self._code: dict[int, ast.expr] = {}
        self._kept: list[Any] = []  # objects whose id must not be used again
        self._modules: list[nn.Module] = []
        self.hints: dict[int, str] = {}
        self.objects: Objects  # of the suite: `SuiteObjects`, which needs this object first
        self.folders: dict[str, ast.expr] = {}  # the variables of temporary folders, by path
        if owner_of(subject.thing) != "suite":
            self.learn(subject.thing, lambda: self._target_name(subject.name))

    def knows(self, value: Any) -> bool:
        """Whether the code for an object is known."""
        return id(value) in self._code or (
            isinstance(value, nn.Module | torch.Tensor) and self._found(value) is not None
        )

    def name(self, value: Any, variable: str) -> None:
        """Remember the variable that holds an object."""
        self.learn(value, lambda: ast.Name(variable, ast.Load()))
        if isinstance(value, nn.Module):
            self._modules.append(value)
        if isinstance(value, tuple | list | dict):
            for index, item in value.items() if isinstance(value, dict) else enumerate(value):
                part = ast.Subscript(ast.Name(variable, ast.Load()), ast.Constant(index), ast.Load())
                if not self.knows(item):
                    self.learn(item, lambda part=part: part)  # type: ignore[misc]

    def learn(self, value: Any, code: Callable[[], ast.expr]) -> None:
        """Remember the code for an object, unless it is known."""
        plain = isinstance(value, type(None) | bool | int | float | str | bytes | torch.dtype)
        if id(value) in self._code or plain:
            return
        try:
            self._code[id(value)] = code()
        except Unsayable:
            return
        self._kept.append(value)

    def attribute(self, owner: Any, name: str, value: Any) -> None:
        """Remember where the value of an attribute comes from."""
        if isinstance(value, torch.Tensor) and not isinstance(owner, torch.Tensor | nn.Module):
            self.hints.setdefault(id(value), self.hints.get(id(owner), name))
        if owner is self.subject.target and owner_of(value) != "suite":
            self.learn(value, lambda: self._target_name(name))
        elif id(owner) in self._code and not isinstance(owner, ModuleType):
            self.learn(value, lambda: ast.Attribute(self._code[id(owner)], name, ast.Load()))

    def __call__(self, value: Any) -> ast.expr:
        """The code for an object.

        Raises:
            Unsayable: if there is none.
        """
        if id(value) in self._code:
            return self._code[id(value)]
        if isinstance(value, Case):
            return self.objects.case(value)
        if self.objects.is_made(value):
            return self.objects.made(value)
        for kinds, maker in MAKERS:
            if isinstance(value, kinds):
                code: ast.expr = maker(self, value)
                return code
        if callable(value):
            return self.function(value)
        if dataclasses.is_dataclass(value) and self.is_foreign(value):
            return self._namespace(SimpleNamespace(**vars(value)))
        raise Unsayable(f"an object of type {type(value).__name__}")

    def function(self, function: Any) -> ast.expr:
        """The code for a function, a class or a method."""
        if id(function) in self._code:
            return self._code[id(function)]
        if isinstance(function, nn.Module):
            return self._tensor_or_module(function)
        bound = getattr(function, "__self__", None)
        if bound is not None and not isinstance(bound, ModuleType):
            if bound is self.subject.target:
                return self._target_name(function.__name__)
            return ast.Attribute(self(bound), function.__name__, ast.Load())
        if isinstance(function, FunctionType) and "<" in function.__qualname__ and owner_of(function) == "suite":
            return self.objects.local_function(function)
        return self._imported(function)

    def method(self, owner: Any, name: str) -> ast.expr:
        """The code for a method of an object."""
        return ast.Attribute(self(owner), name, ast.Load())

    def is_foreign(self, thing: Any) -> bool:
        """Whether something is of `reference` although another target is judged: a script has values in its place."""
        module = getattr(thing, "__module__", None) or ""
        return f"{module}.".startswith(f"{REFERENCE}.") and getattr(self.subject.target, "__name__", "") != REFERENCE

    def is_numeric(self, function: Any) -> bool:
        """Whether a function is one of NumPy's that computes."""
        return not isinstance(function, type) and _numpy_name(function) is not None

    def is_suites_module(self, function: Any) -> bool:
        """Whether a function is a class of modules or optimisers that the suite itself defines for its cases."""
        kinds = nn.Module | torch.optim.Optimizer
        return isinstance(function, type) and function.__module__.startswith(PACKAGE) and issubclass(function, kinds)

    def _target_name(self, name: str) -> ast.expr:
        return ast.Name(f"_target_{name}", ast.Load())

    def _imported(self, function: Any) -> ast.expr:
        where, name = owner_of(function), getattr(function, "__qualname__", getattr(function, "__name__", ""))
        if where == "torch" or function in vars(torch).values():
            return ast.parse(public_name(function), mode="eval").body
        module = getattr(function, "__module__", None) or ""
        if not name or (not name.isidentifier() and "<" in name):
            raise Unsayable(f"the function {name}")
        if not isinstance(function, type) and (numeric := _numpy_name(function)) is not None:
            return ast.parse(numeric, mode="eval").body
        if where == "python" and module == "builtins":
            return ast.Name(name, ast.Load())
        if where == "suite":
            return ast.Name(f"_suite_{module}:{name}", ast.Load())
        return ast.Name(f"_import_{module}:{name}", ast.Load())

    def _tensor_or_module(self, value: Any) -> ast.expr:
        found = self._found(value)
        if found is not None:
            return found
        if isinstance(value, nn.Module):
            raise Unsayable(f"a module {type(value).__name__}")
        if value.grad_fn is not None:
            raise Unsayable("a tensor with a graph")
        self.name(value, self.leaf(value, self.hints.get(id(value), "")))
        return self._code[id(value)]

    def _found(self, value: Any) -> ast.expr | None:
        """The code for a tensor or a module that is known or is part of a known module."""
        if id(value) in self._code:
            return self._code[id(value)]
        for module in self._modules:
            for path, part in _parts(module):
                if part is value:
                    return _dotted(self._code[id(module)], path)
        return None

    def _constant(self, value: Any) -> ast.expr:
        if isinstance(value, float) and not math.isfinite(value):
            return ast.parse(f'float("{value}")', mode="eval").body
        if isinstance(value, complex | torch.dtype | torch.layout):
            return ast.parse(repr(value), mode="eval").body
        return self._text(value) if isinstance(value, str) else ast.Constant(value)

    def _text(self, value: str) -> ast.expr:
        """A text, in which a temporary folder is its variable."""
        for path, folder in self.folders.items():
            if value == path:
                return folder
            if value.startswith(path):
                return ast.BinOp(folder, ast.Add(), ast.Constant(value.removeprefix(path)))
        return ast.Constant(value)

    def is_in_folder(self, value: Any) -> bool:
        """Whether something is the path of a temporary folder, or of a file in it."""
        return isinstance(value, str | PurePath) and str(value).startswith(tuple(self.folders))

    def _path(self, value: PurePath) -> ast.expr:
        return ast.Call(ast.Name("_import_pathlib:Path", ast.Load()), [self._text(str(value))], [])

    def _items(self, value: Any) -> ast.expr:
        items = [self(item) for item in value]
        if isinstance(value, tuple):
            return ast.Tuple(items, ast.Load())
        return ast.List(items, ast.Load()) if isinstance(value, list) else ast.Set(items)

    def _dict(self, value: dict[Any, Any]) -> ast.expr:
        return ast.Dict([self(key) for key in value], [self(item) for item in value.values()])

    def _ordered(self, value: OrderedDict[Any, Any]) -> ast.expr:
        return ast.Call(ast.Name("_import_collections:OrderedDict", ast.Load()), [self(list(value.items()))], [])

    def _array(self, value: Any) -> ast.expr:
        if value.size > 200 or value.dtype.kind not in "fbi":
            raise Unsayable("an array")
        if value.dtype.kind == "b" and value.ndim == 1:  # an index
            return self(value.tolist())
        text = tensor_literal(torch.from_numpy(np.array(value))).replace("torch.", "np.")
        return ast.parse(text.replace("np.tensor(", "np.array("), mode="eval").body

    def _slice(self, value: slice) -> ast.expr:
        parts = [None if part is None else self(part) for part in (value.start, value.stop, value.step)]
        return ast.Slice(*parts)

    def _namespace(self, value: SimpleNamespace) -> ast.expr:
        keywords = [ast.keyword(name, self(item)) for name, item in vars(value).items()]
        return ast.Call(ast.Name("_import_types:SimpleNamespace", ast.Load()), [], keywords)


MAKERS: tuple[tuple[Any, Any], ...] = (
    (nn.Module | torch.Tensor, Expressions._tensor_or_module),
    (type(None) | bool | int | float | complex | str | bytes | torch.dtype | type(...), Expressions._constant),
    (torch.Size, lambda self, value: self(tuple(value))),
    (torch.device, lambda _, value: ast.Constant(str(value))),
    (np.generic, lambda self, value: self(value.item())),
    (np.ndarray, Expressions._array),
    (slice, Expressions._slice),
    (SimpleNamespace, Expressions._namespace),
    (PurePath, Expressions._path),
    (OrderedDict, Expressions._ordered),
    (dict, Expressions._dict),
    (tuple | list | set, Expressions._items),
)


def called(
    function: ast.expr, arguments: Iterable[ast.expr], options: dict[str, Any], say: Callable[[Any], ast.expr]
) -> ast.expr:
    """The code of a call."""
    return ast.Call(function, list(arguments), [ast.keyword(name, say(value)) for name, value in options.items()])


def _numpy_name(function: Any) -> str | None:
    """The name by which a script calls a function of NumPy."""
    name = getattr(function, "__name__", "")
    for space, prefix in ((np, "np"), (np.linalg, "np.linalg")):
        if name and getattr(space, name, None) is function:
            return f"{prefix}.{name}"
    return None


def _parts(module: nn.Module) -> Iterator[tuple[str, Any]]:
    yield from module.named_modules(remove_duplicate=False)
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)
    for path, inner in module.named_modules():
        for name, value in vars(inner).items():
            if isinstance(value, torch.Tensor):
                yield f"{path}.{name}".lstrip("."), value


def _dotted(code: ast.expr, path: str) -> ast.expr:
    for name in filter(None, path.split(".")):
        code = (
            ast.Subscript(code, ast.Constant(int(name)), ast.Load())
            if name.isdigit()
            else ast.Attribute(code, name, ast.Load())
        )
    return code
