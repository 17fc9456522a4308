"""Definitions of the suite as short code: without annotations, without docstrings of functions, closely spaced."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from conformance.reproducer.module_source import Lines


def compact(text: str) -> str:
    """The text of definitions without what only explains them; the docstring of a class stays."""
    lines, tree = Lines(text), ast.parse(text)
    source = lines.text
    for begin, end, new in sorted(_edits(tree, lines), reverse=True):
        source = source[:begin] + new + source[end:]
    return close(source.decode())


def _edits(tree: ast.Module, lines: Lines) -> Iterator[tuple[int, int, bytes]]:
    """The places of annotations and docstrings, and what stands there instead."""
    for node in ast.walk(tree):
        if isinstance(node, ast.arg) and node.annotation is not None:
            begin = lines.offset(node.lineno, node.col_offset) + len(node.arg.encode())
            end = lines.place(node.annotation)[1]
            spaced = lines.text[end : end + 3] == b" = "  # the spaces around the default of an annotated argument
            yield begin, end + 3 * spaced, b"=" * spaced
        elif isinstance(node, ast.FunctionDef):
            yield from _of_function(node, lines)
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            yield lines.place(node.target)[1], lines.place(node.annotation)[1], b""


def _of_function(node: ast.FunctionDef, lines: Lines) -> Iterator[tuple[int, int, bytes]]:
    first = node.body[0]
    if node.returns is not None:
        begin, end = lines.place(node.returns)
        yield lines.text.rindex(b"->", 0, begin) - 1, end, b""
    if ast.get_docstring(node) is not None:
        whole = lines.offset(first.lineno), lines.offset((first.end_lineno or first.lineno) + 1)
        indent = b" " * first.col_offset
        yield (*whole, b"" if len(node.body) > 1 else indent + b"pass\n")


def close(text: str) -> str:
    """The text with one empty line between definitions, none between constants, none after the head of a class."""
    text = re.sub(r"\n{3,}", "\n\n", text)
    text = re.sub(r"^(\w+ = .*\n)\n(?=\w+ = )", r"\1", text, flags=re.MULTILINE)
    text = re.sub(r"(:\n)\n+", r"\1", text)
    return text.strip("\n") + "\n"
