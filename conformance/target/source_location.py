"""The source location of a target's name, to which the annotation of a failure points."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any


def defined(module: ModuleType, thing: Any, name: str) -> tuple[str, int] | None:
    """File and line of a name's definition, assignment or import in the module; its first line where there is none.

    Args:
        thing: the target, which is the module, or an object or class in it.
    Returns:
        [file, line], or None if the module's source cannot be read.
    """
    file = getattr(module, "__file__", None)
    if file is None:
        return None
    try:
        body = ast.parse(Path(file).read_text(encoding="utf-8")).body
    except (OSError, ValueError, SyntaxError):
        return None
    owner = thing if isinstance(thing, type) else type(thing)
    classes = [node for node in body if isinstance(node, ast.ClassDef) and node.name == owner.__name__]
    members = [node for holder in classes for node in holder.body]
    lines = [node.lineno for node in _statements([*members, *body]) if name in _bound(node)]
    return str(Path(file).resolve()), next(iter((*lines, *(holder.lineno for holder in classes))), 1)


def _statements(body: Iterable[ast.AST]) -> Iterator[ast.stmt]:
    """These statements and those nested in `if`, `try` and `with`, but not the bodies of definitions."""
    for node in body:
        if isinstance(node, ast.If | ast.Try | ast.With | ast.ExceptHandler):
            yield from _statements(ast.iter_child_nodes(node))
        elif isinstance(node, ast.stmt):
            yield node


def _bound(node: ast.stmt) -> set[str]:
    """The names that a statement binds."""
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return {name}
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            return {alias.asname or alias.name.partition(".")[0] for alias in names}
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)}
