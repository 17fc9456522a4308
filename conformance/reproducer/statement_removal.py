"""The removal of statements from definitions, one after the other, as long as a script still shows its defect."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator


def shortened(text: str, shows: Callable[[str], bool]) -> str:
    """The definitions without each statement that is not needed, the longest first.

    Args:
        shows: whether the script with these definitions in place of the given ones shows the defect.
    """
    refused: set[str] = set()
    while True:
        fewer = next((each for each in _without_one(text) if each not in refused), None)
        if fewer is None:
            return text
        if shows(fewer):
            text = fewer
        else:
            refused.add(fewer)


def _without_one(text: str) -> Iterator[str]:
    """The text without each statement, or with only the body of one; a body that would be empty gets `pass`."""
    lines = text.splitlines(keepends=True)
    bodies = [getattr(node, "body", None) for node in ast.walk(ast.parse(text))]
    inner = [(body, each) for body in bodies if isinstance(body, list) for each in body]
    places = [(body, _lines(each)) for body, each in inner if not isinstance(each, ast.Pass)]
    for body, (first, last) in sorted(places, key=lambda place: place[1][0] - place[1][1]):
        instead = [] if len(body) > 1 else [f"{' ' * _indent(lines[first])}pass\n"]
        yield "".join([*lines[:first], *instead, *lines[last:]])
    for body, (first, last) in places:
        inside = next(([*_unwrapped(each, lines)] for each in body if _lines(each) == (first, last)), [])
        if inside:
            yield "".join([*lines[:first], *inside, *lines[last:]])


def _unwrapped(statement: ast.stmt, lines: list[str]) -> Iterator[str]:
    """The lines of the body of a compound statement in its place."""
    if isinstance(statement, ast.Try | ast.If | ast.With):
        first, last = _lines(statement.body[0])[0], _lines(statement.body[-1])[1]
        deeper = _indent(lines[first]) - statement.col_offset
        yield from (line[deeper:] if line.strip() else line for line in lines[first:last])


def _lines(statement: ast.stmt) -> tuple[int, int]:
    """The first line of a statement, counted from 0, and the one after its last."""
    decorators = [each.lineno for each in getattr(statement, "decorator_list", [])]
    return min([statement.lineno, *decorators]) - 1, statement.end_lineno or statement.lineno


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())
