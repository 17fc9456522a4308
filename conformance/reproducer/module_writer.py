"""A bundle as the text of one module: in which order, under which names, and what of each source is kept."""

from __future__ import annotations

import ast
import re
import sys
import textwrap
from collections import deque
from collections.abc import Iterable, Iterator

from conformance.reproducer.module_source import Definition, Import
from conformance.reproducer.source_bundle import Bundle, Piece, Place, Target, extent

# remarks for type checkers and linters; what such a remark explains in brackets stays
REMARK = re.compile(
    r"  # (?:type: ignore(?:\[[\w, -]+\])?|noqa(?:: [A-Z0-9, ]+)?)(?:  \((.*)\))?(?=$|  #)", re.MULTILINE
)


class Text:
    """The text of a bundle: `imports`, `body`, and the name each root has in it.

    Args:
        reserved: names that nothing in the body may take.
    """

    def __init__(self, bundle: Bundle, reserved: Iterable[str] = ()) -> None:
        self.bundle = bundle
        self.order = list(_ordered(bundle))
        self._names = self._chosen_names({*reserved, *bundle.builtins})

    def name(self, target: Target, own: str = "") -> str:
        """What a definition or an import is called; `own` is its name at home where it binds several."""
        return self._names[target, own or target.names[0]]

    @property
    def imports(self) -> str:
        """The import statements, those of the standard library first."""
        standard: tuple[list[str], list[str]] = [], []
        others: tuple[list[str], list[str]] = [], []
        for imported in sorted(self.bundle.imports, key=lambda i: (i.module, i.attribute)):
            group = standard if imported.module.partition(".")[0] in sys.stdlib_module_names else others
            group[bool(imported.attribute)].append(imported.statement(self.name(imported)))
        return "\n\n".join(
            "\n".join([*plain, *_joined(named)]) for plain, named in (standard, others) if plain or named
        )

    @property
    def body(self) -> str:
        """The definitions, each after what it needs when it is defined, else in the order a reader meets them."""
        text, constants = "", False
        for definition in self.order:
            was, constants = constants, not isinstance(definition.node, ast.FunctionDef | ast.ClassDef)
            text += ("" if was and constants else "\n\n") + self._written(self.bundle.pieces[definition])
        return text.strip("\n") + "\n"

    def _written(self, piece: Piece) -> str:
        """The source of a piece with its references renamed, and without what is left out."""
        definition, lines = piece.definition, piece.definition.source
        start, end = extent(lines, definition.node)
        edits = [(*place, "") for place in _outermost(piece.removed)]
        edits += [(*lines.place(link.node), self.name(link.target, link.own)) for link in piece.links]
        edits += [(*place, self.name(definition, own)) for own, place in definition.bindings()]
        text = lines.text[start:end]
        for begin, stop, new in sorted(edits, reverse=True):
            text = text[: begin - start] + new.encode() + text[stop - start :]
        return _tidied(textwrap.dedent(text.decode()))

    def _chosen_names(self, reserved: set[str]) -> dict[tuple[Target, str], str]:
        """A name for everything: its own where that is free, else one with its module's before it."""
        hidden: dict[Target, set[str]] = {}  # names bound where a target is spoken of in another way
        for piece in self.bundle.pieces.values():
            for link in piece.links:
                hidden.setdefault(link.target, set()).update(link.use.hidden)
        chosen: dict[tuple[Target, str], str] = {}
        taken = set(reserved)
        targets: list[Target] = [*self.bundle.imports, *self.order]
        for target in targets:
            for own in target.names:
                free = (n for n in _candidates(target, own) if n not in taken and n not in hidden.get(target, ()))
                chosen[target, own] = next(free)
                taken.add(chosen[target, own])
        return chosen


def _candidates(target: Target, own: str) -> Iterator[str]:
    yield own
    module = (target.module if isinstance(target, Import) else target.where.name).rpartition(".")[2]
    longer = f"{'_' if own.startswith('_') else ''}{module}_{own.lstrip('_')}"
    yield longer
    yield from (f"{longer}_{i}" for i in range(2, 99))


def _ordered(bundle: Bundle) -> Iterator[Definition]:
    """Each root and what it refers to, the near before the far; but nothing before what it needs to be defined."""
    written: set[Definition] = set()
    for root in bundle.roots:
        queue = deque([root] if isinstance(root, Definition) else [])
        while queue:
            for definition in _with_needed(bundle, queue.popleft(), written):
                yield definition
                links = bundle.pieces[definition].links
                queue.extend(link.target for link in links if isinstance(link.target, Definition))


def _with_needed(bundle: Bundle, definition: Definition, written: set[Definition]) -> Iterator[Definition]:
    """A definition after all it needs to be defined."""
    if definition in written:
        return
    written.add(definition)
    called = {id(node.func) for node in definition.nodes if isinstance(node, ast.Call)}
    for link in bundle.pieces[definition].links:
        if not isinstance(link.target, Definition):
            continue
        if _is_plain(bundle, link.target):
            yield from _with_needed(bundle, link.target, written)  # a number is read before what is done with it
        elif link.use.eager:
            # what is called here and now needs all that its body refers to
            for needed in _reachable(bundle, link.target) if id(link.use.node) in called else [link.target]:
                yield from _with_needed(bundle, needed, written)
    yield definition


def _is_plain(bundle: Bundle, definition: Definition) -> bool:
    """Whether it is a constant made from nothing else in the bundle."""
    is_constant = isinstance(definition.node, ast.Assign | ast.AnnAssign)
    return is_constant and all(isinstance(link.target, Import) for link in bundle.pieces[definition].links)


def _reachable(bundle: Bundle, definition: Definition) -> list[Definition]:
    found, waiting = {definition: None}, [definition]
    while waiting:
        for link in bundle.pieces[waiting.pop()].links:
            if isinstance(link.target, Definition) and link.target not in found:
                found[link.target] = None
                waiting.append(link.target)
    return list(found)


def _outermost(places: list[Place]) -> list[Place]:
    """The places that do not lie in another one."""
    return [p for p in set(places) if not any(q != p and q[0] <= p[0] and p[1] <= q[1] for q in places)]


def _tidied(text: str) -> str:
    """Without remarks for tools, and without gaps where something was left out."""
    text = REMARK.sub(lambda found: f"  # {found[1]}" if found[1] else "", text)
    return re.sub(r"\n{3,}", "\n\n", text).rstrip("\n") + "\n"


def _joined(statements: list[str]) -> list[str]:
    """`from` statements, one for each module."""
    modules: dict[str, list[str]] = {}
    for statement in statements:
        module, _, name = statement.removeprefix("from ").partition(" import ")
        modules.setdefault(module, []).append(name)
    return [f"from {module} import {', '.join(names)}" for module, names in modules.items()]
