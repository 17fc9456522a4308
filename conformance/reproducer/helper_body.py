"""The body of a helper of the suite, read so that a call of it can be written as one expression."""

from __future__ import annotations

import ast
from collections.abc import Iterator

REGIONS = ("calling", "calling_quietly", "quiet", "poisoned_memory", "fault_of")


def statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a body, those in regions that only explain what they call included."""
    for statement in body:
        if isinstance(statement, ast.With) and _is_region(statement):
            yield from statements(statement.body)
        else:
            yield statement


def _is_region(statement: ast.With) -> bool:
    """Whether a `with` statement only explains what its body calls."""
    return all(isinstance(i.context_expr, ast.Call) and called_name(i.context_expr) in REGIONS for i in statement.items)


def is_passed_over(statement: ast.stmt) -> bool:
    value = getattr(statement, "value", None)
    return isinstance(value, ast.Constant) or (isinstance(value, ast.Call) and called_name(value) == "require")


def called_name(call: ast.Call) -> str:
    return getattr(call.func, "id", "")


def arguments_of(function: ast.FunctionDef, call: ast.Call) -> dict[str, ast.expr] | None:
    """The arguments of a call by the names of the parameters; None if they do not fit."""
    parameters = [each.arg for each in function.args.args]
    given: dict[str, ast.expr] = dict(zip(parameters[::-1], function.args.defaults[::-1], strict=False))
    given |= dict(zip(parameters, call.args, strict=False))
    given |= {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg is not None}
    fits = len(call.args) <= len(parameters) and not any(keyword.arg is None for keyword in call.keywords)
    return given if fits and set(given) == set(parameters) and function.args.vararg is None else None
