"""The source of what is defined in a notebook or in the program itself: `__main__` cannot be imported elsewhere."""

from __future__ import annotations

import ast
import inspect
import sys
from types import FunctionType, ModuleType
from typing import Any

from conformance.reproducer.free_names import uses
from conformance.reproducer.literals import Unsayable
from conformance.reproducer.module_source import NoSource, literal

MAIN = "__main__"


def is_of_session(thing: Any) -> bool:
    """Whether a class or a function is defined in `__main__`, and not inside of another."""
    known = getattr(thing, "__module__", None) == MAIN and isinstance(thing, type | FunctionType)
    return known and getattr(sys.modules[MAIN], thing.__name__, None) is thing


def session_source(thing: Any) -> tuple[list[str], list[str]]:
    """The imports and the definitions, in an order in which they run, of a class or a function and what it uses.

    Raises:
        Unsayable: if the source of one is not at hand, or a value that it uses has no literal.
    """
    imports: dict[str, None] = {}
    written: dict[str, str] = {}
    _write(thing.__name__, thing, imports, written)
    return list(imports), list(written.values())


def _write(name: str, value: Any, imports: dict[str, None], written: dict[str, str]) -> None:
    if name in written:
        return
    if isinstance(value, ModuleType):
        imports[_importing(value.__name__, name)] = None
    elif is_of_session(value):
        written[name] = ""  # a definition may use itself
        text = _source(value)
        for use in uses(ast.parse(text).body[0]):
            used = use.path[0]
            if hasattr(sys.modules[MAIN], used) and not (use.annotation and used not in text):
                _write(used, getattr(sys.modules[MAIN], used), imports, written)
        del written[name]
        written[name] = text
    elif isinstance(value, type | FunctionType) or callable(value):
        own = getattr(value, "__name__", name)
        imports[f"from {value.__module__} import {own}" + (f" as {name}" if own != name else "")] = None
    else:
        try:
            written[name] = f"{name} = {literal(value)}"
        except NoSource as error:
            raise Unsayable(f"the value of {name}") from error


def _importing(module: str, name: str) -> str:
    """The statement that imports a module under a name."""
    package, _, last = module.rpartition(".")
    if name == module:
        return f"import {module}"
    return f"from {package} import {name}" if package and last == name else f"import {module} as {name}"


def _source(thing: Any) -> str:
    try:
        return inspect.getsource(thing).rstrip()
    except (OSError, TypeError) as error:
        raise Unsayable(f"the source of {thing.__name__}") from error
