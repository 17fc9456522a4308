"""A bundle as the text of one module: the order and the names of its definitions, and the source of each."""

from __future__ import annotations

import ast
import re
import sys
import textwrap
from collections import deque
from collections.abc import Iterable, Iterator

from conformance.reproducer.module_source import Definition, Import
from conformance.reproducer.source_bundle import Bundle, Piece, Place, Target, extent

# remarks for type checkers and linters, which are removed; an explanation in brackets after one is kept
REMARK = re.compile(
    r"  # (?:type: ignore(?:\[[\w, -]+\])?|noqa(?:: [A-Z0-9, ]+)?)(?:  \((.*)\))?(?=$|  #)", re.MULTILINE
)


class Text:
    """The text of a bundle: `imports`, `body`, and the name of each root.

    Args:
        reserved: names that no definition may have.
    """

    def __init__(self, bundle: Bundle, reserved: Iterable[str] = ()) -> None:
        self.bundle = bundle
        self.order = list(_ordered(bundle))
        self._names = self._chosen_names({*reserved, *bundle.builtins})

    def name(self, target: Target, own: str = "") -> str:
        """The name of a definition or an import in the script; `own` is its original name if it binds several."""
        return self._names[target, own or target.names[0]]

    @property
    def imports(self) -> str:
        """The import statements, standard library first."""
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
        """The definitions in reading order, except that a definition comes after those that it needs when defined."""
        text, constants = "", False
        for definition in self.order:
            was, constants = constants, not isinstance(definition.node, ast.FunctionDef | ast.ClassDef)
            text += ("" if was and constants else "\n\n") + self._written(self.bundle.pieces[definition])
        return text.strip("\n") + "\n"

    def _written(self, piece: Piece) -> str:
        """The source of a piece with renamed references and without its removed parts."""
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
        """A name for every definition and import: its own if free, otherwise prefixed with its module's name."""
        hidden: dict[Target, set[str]] = {}  # local names around the references to a target, which would hide it
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
    """The definitions breadth first from the roots, but each after those that it needs when it is defined."""
    written: set[Definition] = set()
    for root in bundle.roots:
        queue = deque([root] if isinstance(root, Definition) else [])
        while queue:
            for definition in _with_needed(bundle, queue.popleft(), written):
                yield definition
                links = bundle.pieces[definition].links
                queue.extend(link.target for link in links if isinstance(link.target, Definition))


def _with_needed(bundle: Bundle, definition: Definition, written: set[Definition]) -> Iterator[Definition]:
    """A definition, preceded by the definitions that it needs when it is defined."""
    if definition in written:
        return
    written.add(definition)
    called = {id(node.func) for node in definition.nodes if isinstance(node, ast.Call)}
    for link in bundle.pieces[definition].links:
        if not isinstance(link.target, Definition):
            continue
        if _is_plain(bundle, link.target):
            yield from _with_needed(bundle, link.target, written)  # constants come before the code that uses them
        elif link.use.eager:
            # a function called at definition time needs everything that its body refers to
            for needed in _reachable(bundle, link.target) if id(link.use.node) in called else [link.target]:
                yield from _with_needed(bundle, needed, written)
    yield definition


def _is_plain(bundle: Bundle, definition: Definition) -> bool:
    """Whether a definition is a constant that uses nothing else in the bundle."""
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
    """The places that are not inside another place."""
    return [p for p in set(places) if not any(q != p and q[0] <= p[0] and p[1] <= q[1] for q in places)]


def _tidied(text: str) -> str:
    """The text without remarks for tools and without the gaps of removed parts."""
    text = REMARK.sub(lambda found: f"  # {found[1]}" if found[1] else "", text)
    return re.sub(r"\n{3,}", "\n\n", text).rstrip("\n") + "\n"


def _joined(statements: list[str]) -> list[str]:
    """The `from` statements, joined to one for each module."""
    modules: dict[str, list[str]] = {}
    for statement in statements:
        module, _, name = statement.removeprefix("from ").partition(" import ")
        modules.setdefault(module, []).append(name)
    return [f"from {module} import {', '.join(names)}" for module, names in modules.items()]
