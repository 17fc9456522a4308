"""The source of a module: the definition or import behind each top-level name."""

from __future__ import annotations

import ast
import importlib.util
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

PACKAGES = ("conformance", "reference")  # packages whose source is copied; a script imports all others


class NoSource(Exception):  # noqa: N818  (the name says what is missing)
    """Code that a script cannot contain, because its source is not where its name says."""


@dataclass(frozen=True)
class Import:
    """A name that another distribution provides: `import module` or `from module import attribute`."""

    module: str
    attribute: str = ""
    name: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The name under which it is used, as a tuple like `Definition.names`."""
        return (self.name,)

    def statement(self, name: str) -> str:
        """The import statement that binds the given name."""
        what = self.attribute or self.module
        renamed = what if name == what.partition(".")[0] else f"{what} as {name}"
        return f"from {self.module} import {renamed}" if self.attribute else f"import {renamed}"


@dataclass(eq=False)
class Definition:
    """A statement that binds names: a function, a class, or an assignment.

    Attributes:
        where: the module whose names it refers to.   node: the statement.
        source: the text to which the node's positions refer: the module's text, or that of a replacement.
        given: definitions of names that are not the module's, such as closure variables.
    """

    where: Source
    node: ast.stmt
    source: Lines
    given: dict[str, Definition] = field(default_factory=dict)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names it binds."""
        return tuple(bound_names(self.node))

    @cached_property
    def nodes(self) -> tuple[ast.AST, ...]:
        """The statement and all nodes inside it."""
        return tuple(ast.walk(self.node))

    @cached_property
    def words(self) -> tuple[tuple[int, str], ...]:
        """The attributes and strings in it, with their positions: a method may be called by any of these names."""
        attributes = [(n, n.attr) for n in self.nodes if isinstance(n, ast.Attribute)]
        strings = [(n, n.value) for n in self.nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)]
        return tuple((self.source.offset(n.lineno, n.col_offset), word) for n, word in (*attributes, *strings))

    @property
    def full_name(self) -> str:
        """The module's name and its own, such as `conformance.judgement.judge.judge`."""
        return f"{self.where.name}.{self.names[0]}"

    def find(self, name: str) -> Definition | Import | Source | None:
        """The target of a free name in it; None for a builtin."""
        return self.given.get(name) or self._lazily_imported(name) or self.where.find(name)

    def _lazily_imported(self, name: str) -> Definition | Import | Source | None:
        """The target of a name that a function imports from `PACKAGES` when it is called."""
        node = self._lazy.get(name)
        return None if node is None else self.where.imported(node, name)

    @cached_property
    def _lazy(self) -> dict[str, ast.Import | ast.ImportFrom]:
        imports = (n for n in self.nodes if isinstance(n, ast.Import | ast.ImportFrom) and is_own_import(n))
        return {name: node for node in imports for name in bound_names(node)}

    def bindings(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Each name it binds, with its position in the source."""
        node = self.node
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            keyword = "def " if isinstance(node, ast.FunctionDef) else "class "
            start = self.source.offset(node.lineno, node.col_offset + len(keyword))
            yield node.name, (start, start + len(node.name.encode()))
        else:
            yield from ((name.id, self.source.place(name)) for name in _stored(node))


class Lines:
    """A text with conversion from `ast` positions, which are lines and UTF-8 columns, to byte offsets."""

    def __init__(self, text: str) -> None:
        self.text = text.encode()
        self.lines = self.text.splitlines(keepends=True)
        self._starts = [0]
        for line in self.lines:
            self._starts.append(self._starts[-1] + len(line))

    def offset(self, line: int, column: int = 0) -> int:
        """The offset in `text` of a line, counted from 1, and a column, counted from 0."""
        return self._starts[line - 1] + column

    def place(self, node: ast.expr) -> tuple[int, int]:
        """The offsets in `text` at which an expression begins and ends."""
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self.offset(node.lineno, node.col_offset), self.offset(node.end_lineno, node.end_col_offset)

    def with_comments(self, line: int, first: int = 1) -> int:
        """The first line of the comment directly above a line; the line itself if there is no comment."""
        while line > first and self.lines[line - 2].lstrip().startswith(b"#"):
            line -= 1
        return line


class Source:
    """A module of `PACKAGES`, read from its file without running it."""

    def __init__(self, name: str) -> None:
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):  # ValueError for a module without a file
            spec = None
        if spec is None or not spec.origin or not spec.origin.endswith(".py"):
            raise NoSource(f"module {name} has no source")
        self.name, self.is_package = name, spec.submodule_search_locations is not None
        text = Path(spec.origin).read_text(encoding="utf-8")
        self.lines, self.tree = Lines(text), ast.parse(text)

    @cached_property
    def bound(self) -> dict[str, Definition | ast.Import | ast.ImportFrom]:
        """The last statement that binds each top-level name."""
        bound: dict[str, Definition | ast.Import | ast.ImportFrom] = {}
        for node in self.tree.body:
            found = node if isinstance(node, ast.Import | ast.ImportFrom) else Definition(self, node, self.lines)
            bound.update(dict.fromkeys(bound_names(node), found))
        return bound

    def find(self, name: str) -> Definition | Import | Source | None:
        """The target of a top-level name, through any number of imports; None for a builtin."""
        found = self.bound.get(name)
        if isinstance(found, ast.Import | ast.ImportFrom):
            return self.imported(found, name)
        return self._submodule(name) if found is None and self.is_package else found

    def imported(self, node: ast.Import | ast.ImportFrom, name: str) -> Definition | Import | Source | None:
        """The target of a name that an import statement of this module binds."""
        alias = next(a for a in node.names if name in (a.asname, a.name.partition(".")[0], a.name))
        if isinstance(node, ast.Import):
            own = alias.name if alias.asname else alias.name.partition(".")[0]
            return source(own) if is_own(own) else Import(alias.name, name=name)
        module = self._absolute(node)
        if not is_own(module):
            return Import(module, alias.name, name)
        return source(module).find(alias.name)

    def _absolute(self, node: ast.ImportFrom) -> str:
        """The absolute name of the module in a `from` statement."""
        if not node.level:
            return node.module or ""
        up = node.level - (1 if self.is_package else 0)
        parts = self.name.split(".")
        return ".".join([*parts[: len(parts) - up], *([node.module] if node.module else [])])

    def _submodule(self, name: str) -> Source | None:
        try:
            return source(f"{self.name}.{name}")
        except NoSource:
            return None

    def function(self, line: int) -> tuple[ast.FunctionDef, ast.FunctionDef | None]:
        """The function that begins on a line, and its enclosing function, if any."""
        for node, parent in _functions(self.tree, None):
            if line in (node.lineno, *(d.lineno for d in node.decorator_list)):
                return node, parent
        raise NoSource(f"{self.name} has no function on line {line}")


def _functions(
    node: ast.AST, parent: ast.FunctionDef | None
) -> Iterator[tuple[ast.FunctionDef, ast.FunctionDef | None]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef):
            yield child, parent
        yield from _functions(child, child if isinstance(child, ast.FunctionDef) else parent)


@lru_cache(maxsize=256)
def source(name: str) -> Source:
    """The source of a module, cached."""
    return Source(name)


def defined(thing: Any) -> Definition:
    """The definition of a function or a class; closure variables become literals.

    Raises:
        NoSource: if no readable module defines it, or a closure variable has no literal.
    """
    where = source(thing.__module__ or "")
    if isinstance(thing, type):
        found = where.find(thing.__qualname__)
        if not isinstance(found, Definition):
            raise NoSource(f"{thing.__qualname__} is not a top-level class of {where.name}")
        return found
    node, parent = where.function(thing.__code__.co_firstlineno)
    if parent is None:
        known = where.bound.get(node.name)
        return known if isinstance(known, Definition) and known.node is node else Definition(where, node, where.lines)
    cells = zip(thing.__code__.co_freevars, thing.__closure__ or (), strict=True)
    texts = {name: f"{name} = {literal(cell.cell_contents)}\n" for name, cell in cells}
    given = {name: Definition(where, ast.parse(text).body[0], Lines(text)) for name, text in texts.items()}
    return Definition(where, node, where.lines, given)


def literal(value: Any) -> str:
    """A number, a string, or a collection of these, as a Python expression.

    Raises:
        NoSource: if the value is of another type.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    if isinstance(value, str):
        return repr(value) if '"' in value or "'" in value else f'"{repr(value)[1:-1]}"'
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    if isinstance(value, dict):
        return f"{{{', '.join(f'{literal(k)}: {literal(v)}' for k, v in value.items())}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(literal, value))}]"
    if isinstance(value, tuple):
        return f"({', '.join(map(literal, value))}{',' if len(value) == 1 else ''})"
    raise NoSource(f"{value!r} has no literal")


def is_own(module: str) -> bool:
    """Whether a module belongs to `PACKAGES`."""
    return module.partition(".")[0] in PACKAGES


def is_own_import(node: ast.Import | ast.ImportFrom) -> bool:
    """Whether an import statement brings in names of `PACKAGES`."""
    if isinstance(node, ast.ImportFrom):
        return node.level > 0 or is_own(node.module or "")
    return any(is_own(alias.name) for alias in node.names)


def bound_names(node: ast.stmt) -> Iterator[str]:
    """The names that a statement binds in its scope; none for `from __future__` and inside `if`."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Import | ast.ImportFrom):
        if not (isinstance(node, ast.ImportFrom) and node.module == "__future__"):
            yield from (alias.asname or alias.name.partition(".")[0] for alias in node.names)
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        yield from (name.id for name in _stored(node))


def _stored(node: ast.stmt) -> Iterator[ast.Name]:
    """The names on the left side of an assignment."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return (
        n for target in targets for n in ast.walk(target) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
    )
