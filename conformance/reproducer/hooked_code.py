"""Hooked code: functions of the suite whose calls, attributes, items and operators go through a tape for a while."""

from __future__ import annotations

import ast
import copy
import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from types import CodeType, FunctionType, ModuleType
from typing import Any

from conformance.reproducer.code_owner import owner_of
from conformance.specification.groups import PACKAGE
from conformance.target.calls import calling
from conformance.target.check_case import check_case
from conformance.target.subject import Subject
from conformance.target.target import Target

TAPE = "_tape_of_this_check"  # the name under which hooked code finds the tape among its module's names
HOOKED = (PACKAGE, Subject.__module__.rpartition(".")[0])  # modules whose names begin so have their code hooked
PLAIN = (calling.__module__, Target.__module__, check_case.__module__)
HELD = "_held"  # the variable of hooked code for a value that is assigned to several places
UNHOOKED = ("super", "locals", "globals", "vars", "TypeVar", "cast")  # they look at their caller, or are no calls


@contextmanager
def hooked(tape: Any, check: Callable[..., Any], *others: Any) -> Iterator[None]:
    """A region in which the check, the other things, and what their modules use of the suite run through the tape.

    Args:
        tape: an object with the methods `call`, `attribute`, `item`, `binary`, `unary`, `set_attribute`, `set_item`
            and `require`.
    """
    modules: dict[str, ModuleType] = {}
    for thing in (check, *others):
        name = getattr(thing, "__module__", None)
        if name is not None and not name.startswith(HOOKED) and owner_of(thing) == "suite":
            modules[name] = sys.modules[name]
            for value in list(vars(modules[name]).values()):
                _reach(getattr(value, "__module__", None), modules)
        _reach(name, modules)
    before: list[tuple[FunctionType, CodeType]] = []
    try:
        for name, module in modules.items():
            codes = _codes(name)
            vars(module)[TAPE] = tape
            for function in _functions(module, check):
                code = codes.get((function.__code__.co_qualname, function.__code__.co_firstlineno))
                if code is not None and code.co_freevars == function.__code__.co_freevars:
                    before.append((function, function.__code__))
                    function.__code__ = code
        yield
    finally:
        for function, code in reversed(before):
            function.__code__ = code
        for module in modules.values():
            vars(module).pop(TAPE, None)


def _reach(name: str | None, modules: dict[str, ModuleType]) -> None:
    """Add the module of that name, and those whose functions and classes it uses."""
    if name is None or name in modules or not name.startswith(HOOKED) or name in PLAIN:
        return
    modules[name] = sys.modules[name]
    for value in list(vars(modules[name]).values()):
        _reach(value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None), modules)


def _functions(module: ModuleType, check: Callable[..., Any]) -> Iterator[FunctionType]:
    """The functions and methods that a module defines, and the check."""
    waiting: list[Any] = [check, *vars(module).values()]
    seen: set[int] = set()
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        inner = [getattr(thing, name, None) for name in ("__func__", "__wrapped__", "fget", "func")]
        if isinstance(thing, FunctionType):
            if thing.__module__ == module.__name__:
                yield thing
            inner = inner[1:2]
            clauses = getattr(thing, "clauses", ())
            inner += [clause.check for clause in clauses]
        elif isinstance(thing, type):
            inner = list(vars(thing).values()) if thing.__module__ == module.__name__ else []
        elif not isinstance(thing, staticmethod | classmethod | property | functools.cached_property):
            inner = inner[1:2] if callable(thing) and not isinstance(thing, ModuleType) else []
        waiting += [each for each in inner if each is not None]


@lru_cache(maxsize=256)
def _codes(name: str) -> dict[tuple[str, int], CodeType]:
    """The hooked code of each function of a module, by qualified name and first line."""
    module = sys.modules[name]
    file = inspect.getsourcefile(module) or ""
    tree = ast.fix_missing_locations(_Hooks().visit(copy.deepcopy(tree_of(name))))
    found: dict[tuple[str, int], CodeType] = {}
    waiting = [compile(tree, file, "exec", dont_inherit=True)]
    while waiting:
        code = waiting.pop()
        found[code.co_qualname, code.co_firstlineno] = code
        waiting += [const for const in code.co_consts if isinstance(const, CodeType)]
    return found


@lru_cache(maxsize=256)
def tree_of(name: str) -> ast.Module:
    """The syntax tree of a module, which nothing may change."""
    return ast.parse(inspect.getsource(sys.modules[name]))


class _Hooks(ast.NodeTransformer):
    """Replaces operations by calls of the tape."""

    def _hook(self, node: ast.AST, name: str, *arguments: ast.expr, **options: Any) -> Any:
        method = ast.Attribute(ast.Name(TAPE, ast.Load()), name, ast.Load())
        call = ast.Call(method, list(arguments), options.get("keywords", []))
        return ast.copy_location(call, node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        visited = [self.visit(statement) for statement in node.body]  # neither defaults nor decorators
        node.body = [each for found in visited for each in (found if isinstance(found, list) else [found])]
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        node.body = [self.visit(s) if isinstance(s, ast.FunctionDef) else s for s in node.body]
        return node

    def visit_Module(self, node: ast.Module) -> ast.AST:
        kept = ast.FunctionDef | ast.ClassDef
        node.body = [self.visit(s) if isinstance(s, kept) else s for s in node.body]
        return node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        return node  # a message

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        if node.value is not None:
            node.value = self.visit(node.value)
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if isinstance(node.func, ast.Name) and node.func.id in UNHOOKED:
            return node
        is_super = isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Call)
        if is_super and getattr(node.func.value.func, "id", "") == "super":  # type: ignore[attr-defined]
            return node
        if isinstance(node.func, ast.Name) and node.func.id == "require":
            where = ast.Tuple([ast.Constant(node.lineno), ast.Constant(node.col_offset)], ast.Load())
            seen = ast.Call(ast.Name("locals", ast.Load()), [], [])
            name = ast.Name("__name__", ast.Load())
            given = [self.visit(argument) for argument in node.args]
            return self._hook(node, "require", *given, name, where, seen)  # type: ignore[no-any-return]
        arguments = [self.visit(argument) for argument in node.args]
        keywords = [ast.keyword(k.arg, self.visit(k.value)) for k in node.keywords]
        return self._hook(node, "call", self.visit(node.func), *arguments, keywords=keywords)  # type: ignore[no-any-return]

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        self.generic_visit(node)
        if not isinstance(node.ctx, ast.Load) or (node.attr.startswith("__") and not node.attr.endswith("__")):
            return node
        return self._hook(node, "attribute", node.value, ast.Constant(node.attr))  # type: ignore[no-any-return]

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        self.generic_visit(node)
        if not isinstance(node.ctx, ast.Load):
            return node
        return self._hook(node, "item", node.value, _index(node.slice))  # type: ignore[no-any-return]

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        return self._hook(node, "binary", ast.Constant(type(node.op).__name__), node.left, node.right)  # type: ignore[no-any-return]

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        if len(node.ops) > 1 or isinstance(node.ops[0], ast.Is | ast.IsNot | ast.In | ast.NotIn):
            return node
        kind = ast.Constant(type(node.ops[0]).__name__)
        return self._hook(node, "binary", kind, node.left, node.comparators[0])  # type: ignore[no-any-return]

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.op, ast.Not) or isinstance(node.operand, ast.Constant):
            return node
        return self._hook(node, "unary", ast.Constant(type(node.op).__name__), node.operand)  # type: ignore[no-any-return]

    def visit_Assign(self, node: ast.Assign) -> Any:
        if not any(map(_has_places, node.targets)):
            node.value = self.visit(node.value)
            return node
        held = ast.Assign([ast.Name(HELD, ast.Store())], self.visit(node.value))
        parts = [self._assigned(target, ast.Name(HELD, ast.Load()), HELD) for target in node.targets]
        found = [ast.copy_location(statement, node) for statement in [held, *(s for part in parts for s in part)]]
        return [ast.fix_missing_locations(statement) for statement in found]

    def _assigned(self, target: ast.expr, value: ast.expr, name: str) -> list[ast.stmt]:
        """Statements that assign a value to a target; each part of a tuple gets a variable of its own first."""
        if isinstance(target, ast.Tuple | ast.List) and _has_places(target):
            names = [f"{name}_{n}" for n in range(len(target.elts))]
            parts = ast.Tuple([ast.Name(each, ast.Store()) for each in names], ast.Store())
            each = zip(target.elts, names, strict=True)
            inner = [self._assigned(part, ast.Name(own, ast.Load()), own) for part, own in each]
            return [ast.Assign([parts], value), *(statement for part in inner for statement in part)]
        if isinstance(target, ast.Attribute):
            hook = self._hook(target, "set_attribute", self.visit(target.value), ast.Constant(target.attr), value)
            return [ast.Expr(hook)]
        if isinstance(target, ast.Subscript):
            index = _index(self.visit(target.slice))
            return [ast.Expr(self._hook(target, "set_item", self.visit(target.value), index, value))]
        return [ast.Assign([target], value)]


def _has_places(target: ast.expr) -> bool:
    """Whether an assignment goes to attributes or items, perhaps in a tuple without a starred part."""
    if not isinstance(target, ast.Tuple | ast.List):
        return isinstance(target, ast.Attribute | ast.Subscript)
    return not any(isinstance(part, ast.Starred) for part in target.elts) and any(map(_has_places, target.elts))


def _index(node: ast.expr) -> ast.expr:
    """An index as an argument: slices become calls of `slice`."""
    if isinstance(node, ast.Slice):
        parts = [part or ast.Constant(None) for part in (node.lower, node.upper, node.step)]
        return ast.copy_location(ast.Call(ast.Name("slice", ast.Load()), parts, []), node)
    if isinstance(node, ast.Tuple):
        return ast.copy_location(ast.Tuple([_index(part) for part in node.elts], ast.Load()), node)
    return node
