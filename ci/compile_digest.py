"""A digest of all inputs of a compilation: compilations with equal digests have equal results."""

import ast
import hashlib
import inspect
import textwrap
import types
from collections.abc import Iterator
from functools import cache
from typing import Any

from ci.compile_sources import Source

LENGTH = 16  # hexadecimal digits: among a thousand sources, a collision has a probability of about 10⁻¹³


def digest(source: Source, arch: int, *others: str) -> str:
    """The digest of a source, an architecture, and `others`, such as the compiler's version."""
    constants = {name: str(value) for name, value in sorted(source.constants.items())}
    given = (arch, source.signature, constants, source.aligned, sorted(source.options.items()))
    text = "\n".join((*others, repr(given), *functions(source.kernel)))
    return hashlib.sha256(text.encode()).hexdigest()[:LENGTH]


@cache
def functions(kernel: Any) -> list[str]:
    """The code of a kernel and of each function that it calls, and the values of the globals that they read, sorted.

    The code excludes comments, docstrings and positions in files, and Triton's own functions, whose version is known.
    """
    found: dict[str, str] = {}
    waiting = [_plain(kernel)]
    while waiting:
        function = waiting.pop()
        name = f"{function.__module__}.{function.__qualname__}"
        if name in found:
            continue
        tree = _parsed(function)
        found[name] = ast.unparse(tree)
        for used, value in _globals(tree, function):
            if isinstance(value, types.FunctionType):
                waiting.append(value)
            else:
                found[f"{name}: {used}"] = repr(value)
    return [f"{name}\n{text}" for name, text in sorted(found.items())]


def code(function: Any) -> str:
    """The code of one function without its comments and docstring."""
    return ast.unparse(_parsed(_plain(function)))


def _plain(function: Any) -> types.FunctionType:
    """The Python function inside a `triton.jit` function."""
    found: types.FunctionType = getattr(function, "fn", function)
    return found


@cache
def _parsed(function: types.FunctionType) -> ast.FunctionDef:
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    assert isinstance(tree, ast.FunctionDef)
    if ast.get_docstring(tree, clean=False) is not None:
        del tree.body[0]
    tree.body = tree.body or [ast.Pass()]
    return tree


def _globals(tree: ast.FunctionDef, function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """The global names that a function reads, without Triton's and Python's own, and their values.

    Raises:
        TypeError: if the text of a value does not determine the value.
    """
    arguments = tree.args
    own = {a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)}
    own |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Name | ast.Attribute):
            continue
        words = ast.unparse(node).split(".")
        if words[0] in own or words[0] not in function.__globals__ or not all(map(str.isidentifier, words)):
            continue
        value = function.__globals__[words[0]]
        if isinstance(value, types.ModuleType) and _is_triton(value.__name__):
            continue
        for word in words[1:]:
            value = getattr(value, word)
        value = _plain(value)
        if isinstance(value, types.ModuleType) or (isinstance(value, CODE) and _is_triton(value.__module__)):
            continue
        if not isinstance(value, TOLD) and not _is_triton(type(value).__module__):
            raise TypeError(f"{function.__qualname__} reads {ast.unparse(node)}, a {type(value).__name__}: no digest")
        yield ast.unparse(node), value


CODE = types.FunctionType | type
TOLD = types.FunctionType | bool | int | float | str | tuple | None
"""Functions, and types whose text determines the value. Triton's constants and dtypes are accepted too."""


def _is_triton(module: str) -> bool:
    return module.partition(".")[0] == "triton"
