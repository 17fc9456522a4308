"""A bundle: functions and classes of this distribution with all code they refer to, found by reading the source."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache

from conformance.cases.reproducer_marks import LEFT_OUT, full_name
from conformance.reproducer.free_names import Use, uses
from conformance.reproducer.module_source import Definition, Import, Lines, NoSource, Source, is_own_import

Target = Definition | Import
Place = tuple[int, int]


@dataclass(frozen=True)
class Link:
    """A reference in a piece and its target; `node` is the part of the attribute chain that names the target."""

    use: Use
    node: ast.expr
    target: Target

    @property
    def own(self) -> str:
        """The target's original name."""
        said = self.node.attr if isinstance(self.node, ast.Attribute) else self.use.path[0]
        if said not in self.target.names and len(self.target.names) > 1:
            raise NoSource(f"{said} is another name of one of {', '.join(self.target.names)}")
        return said if said in self.target.names else self.target.names[0]


@dataclass(eq=False)
class Piece:
    """A definition in the bundle, of which parts may be removed.

    Attributes:
        links: the references in it, in reading order.
        removed: places of the removed statements, decorators and methods.
    """

    definition: Definition
    links: list[Link] = field(default_factory=list)
    removed: list[Place] = field(default_factory=list)
    _methods: dict[str, list[Place]] = field(default_factory=dict)


class Bundle:
    """The code that the roots need: `pieces` of this distribution, and `imports` from others.

    Unused methods are dropped, unless the class inherits from a third-party class.

    Args:
        instead: replacements of definitions, by the full names of the replaced ones.
        is_open: whether other code, that of a target, may call any method of a root.
    Raises:
        NoSource: if the source of a needed definition cannot be found.
    """

    def __init__(
        self, roots: Iterable[Target], instead: dict[str, Definition] | None = None, *, is_open: bool = False
    ) -> None:
        self.roots, self.instead, self.is_open = list(roots), instead or {}, is_open
        self.pieces: dict[Definition, Piece] = {}
        self.imports: dict[Import, None] = {}
        self.builtins: set[str] = set()
        self._words: set[str] = set()  # attributes and strings read so far: possible names of methods
        self._waiting: list[Target] = list(reversed(self.roots))
        while self._waiting:
            while self._waiting:
                self._take(self._waiting.pop())
            self._wake_methods()
        for piece in self.pieces.values():
            piece.links.sort(key=lambda link: (link.node.lineno, link.node.col_offset))
            piece.removed += [place for places in piece._methods.values() for place in places]

    def _take(self, target: Target) -> None:
        if isinstance(target, Import):
            self.imports[target] = None
        elif target not in self.pieces:
            piece = self.pieces[target] = Piece(target, removed=list(left_out(target)))
            is_open = self.is_open and target in self.roots
            if isinstance(target.node, ast.ClassDef) and not is_open and self._is_closed(target):
                for method in target.node.body:
                    if isinstance(method, ast.FunctionDef):
                        piece._methods.setdefault(method.name, []).append(extent(target.source, method))
            self._read(piece, extent(target.source, target.node))

    def _wake_methods(self) -> None:
        """Read the methods that the code read so far may call."""
        for piece in list(self.pieces.values()):
            for name in [n for n in piece._methods if n in self._words or n.startswith("__")]:
                for place in piece._methods.pop(name):
                    self._read(piece, place)

    def _read(self, piece: Piece, within: Place) -> None:
        """Follow the references in a part of a definition, except those in removed parts."""
        out = [*piece.removed, *(place for places in piece._methods.values() for place in places)]

        def is_written(place: int) -> bool:
            return within[0] <= place < within[1] and not any(a <= place < b for a, b in out)

        for place, use in references(piece.definition):
            if is_written(place):
                self._follow(piece, use)
        self._words.update(word for place, word in piece.definition.words if is_written(place))

    def _follow(self, piece: Piece, use: Use) -> None:
        target, node = self._resolved(piece.definition, use.node)
        if use.annotation and not isinstance(target, Import):
            return  # annotations are never evaluated
        if isinstance(target, Source):
            raise NoSource(f"{piece.definition.where.name} uses as a value the module {ast.unparse(node)}")
        if target is None:
            self.builtins.add(use.path[0])
        else:
            piece.links.append(Link(use, node, target))
            self._waiting.append(target)

    def _resolved(self, definition: Definition, node: ast.expr) -> tuple[Target | Source | None, ast.expr]:
        """The target of a name or an attribute chain, and the part of the chain that names it."""
        chain = [node]
        while isinstance(chain[-1], ast.Attribute):
            chain.append(chain[-1].value)
        reached = chain.pop()
        assert isinstance(reached, ast.Name)
        target = definition.find(reached.id)
        while isinstance(target, Source) and chain:
            reached = chain.pop()
            assert isinstance(reached, ast.Attribute)
            target = target.find(reached.attr)
        if isinstance(target, Definition):
            target = self.instead.get(target.full_name, target)
        return target, reached

    def _is_closed(self, definition: Definition) -> bool:
        """Whether only the bundle can call a class's methods: none of its bases is a third-party class."""
        assert isinstance(definition.node, ast.ClassDef)
        for base in definition.node.bases:
            name = base.value if isinstance(base, ast.Subscript) else base  # Generic[C]
            target = self._resolved(definition, name)[0] if isinstance(name, ast.Name | ast.Attribute) else None
            if isinstance(target, Import) and target.module == "typing":
                continue
            if not (isinstance(target, Definition) and isinstance(target.node, ast.ClassDef)):
                return False
            if not self._is_closed(target):
                return False
        return True


@lru_cache(maxsize=4096)
def references(definition: Definition) -> list[tuple[int, Use]]:
    """The references in a definition, with their places."""
    found, lines = uses(definition.node), definition.source
    return [(lines.offset(use.node.lineno, use.node.col_offset), use) for use in found]


@lru_cache(maxsize=4096)
def left_out(definition: Definition) -> tuple[Place, ...]:
    """The places of the statements and decorators of a definition that no script contains."""
    out: list[ast.stmt | ast.expr] = []
    for node in definition.nodes:
        if isinstance(node, ast.FunctionDef):
            out += [decorator for decorator in node.decorator_list if _is_left_out(definition, decorator)]
        elif (isinstance(node, ast.Expr) and _is_left_out(definition, node.value)) or (
            isinstance(node, ast.Import | ast.ImportFrom) and is_own_import(node)
        ):
            out.append(node)
    return tuple(whole_lines(definition.source, node) for node in out)


def _is_left_out(definition: Definition, node: ast.expr) -> bool:
    called = node.func if isinstance(node, ast.Call) else node
    if not isinstance(called, ast.Name):
        return False
    target = definition.find(called.id)
    return isinstance(target, Definition) and target.full_name in set(map(full_name, LEFT_OUT))


def extent(lines: Lines, node: ast.stmt) -> Place:
    """The lines of a statement, with its decorators and the comment above it, as offsets."""
    decorators = node.decorator_list if isinstance(node, ast.FunctionDef | ast.ClassDef) else []
    first = min([node.lineno, *(d.lineno for d in decorators)])
    return lines.offset(lines.with_comments(first)), lines.offset((node.end_lineno or first) + 1)


def whole_lines(lines: Lines, node: ast.stmt | ast.expr) -> Place:
    """The lines of a statement or a decorator, as offsets."""
    return lines.offset(node.lineno), lines.offset((node.end_lineno or node.lineno) + 1)
