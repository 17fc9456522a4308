"""The free names of a piece of code: where they occur, and whether they are evaluated when the code is defined."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from conformance.reproducer.module_source import is_own_import


@dataclass(frozen=True)
class Use:
    """One reference to a name that the code itself does not bind.

    Attributes:
        node: the name, or the attribute chain that begins with it (`budget.row_chain`).
        eager: whether the name is evaluated when the code is defined, not when it is called.
        annotation: whether the name is in an annotation, which is never evaluated.
        hidden: the names that the code around it binds locally.
    """

    node: ast.expr
    eager: bool
    annotation: bool
    hidden: frozenset[str]

    @property
    def path(self) -> list[str]:
        """The name and the attributes after it."""
        parts, node = [], self.node
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        assert isinstance(node, ast.Name)
        return [node.id, *reversed(parts)]


def uses(node: ast.AST, outer: frozenset[str] = frozenset()) -> list[Use]:
    """The references in a statement, in reading order; `outer` are the names bound around the statement."""
    reader = _Reader(outer)
    reader.visit(node)
    return reader.found


class _Reader(ast.NodeVisitor):
    """Walks code and tracks the names bound around each node; `eager` holds outside of function bodies."""

    def __init__(self, hidden: frozenset[str]) -> None:
        self.found: list[Use] = []
        self.hidden, self.eager, self.annotation = hidden, True, False
        self.of_class: frozenset[str] = frozenset()  # the part of `hidden` that a class body binds

    def _within(self, nodes: Iterable[ast.AST], **state: object) -> None:
        before = {name: getattr(self, name) for name in state}
        vars(self).update(state)
        for node in nodes:
            self.visit(node)
        vars(self).update(before)

    def _inside(self, nodes: Iterable[ast.AST], bound: Iterable[str]) -> None:
        # methods do not see the names of the class body
        hidden = self.hidden - self.of_class | set(bound)
        self._within(nodes, hidden=hidden, eager=False, of_class=frozenset())

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load) and node.id not in self.hidden:
            self.found.append(Use(node, self.eager, self.annotation, self.hidden))

    def visit_Attribute(self, node: ast.Attribute) -> None:
        first: ast.expr = node
        while isinstance(first, ast.Attribute):
            first = first.value
        if isinstance(first, ast.Name) and first.id not in self.hidden:
            self.found.append(Use(node, self.eager, self.annotation, self.hidden))
        else:
            self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        arguments = _arguments(node.args)
        self._within([*node.decorator_list, *node.args.defaults, *(d for d in node.args.kw_defaults if d)])
        self._within([a.annotation for a in arguments if a.annotation], annotation=True)
        self._within([node.returns] if node.returns else [], annotation=True)
        self._inside(node.body, [*(a.arg for a in arguments), *_bound_in(node.body)])

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._within([*node.args.defaults, *(d for d in node.args.kw_defaults if d)])
        self._inside([node.body], [a.arg for a in _arguments(node.args)])

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._within([*node.decorator_list, *node.bases, *node.keywords])
        own = frozenset(_bound_in(node.body))
        self._within(node.body, hidden=self.hidden | own, of_class=own - self.hidden)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self._within([node.annotation], annotation=True)
        self._within([node.target, *([node.value] if node.value else [])])

    def _comprehension(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> None:
        self.visit(node.generators[0].iter)
        targets = {name for g in node.generators for name in _stored(g.target)}
        inner: list[ast.AST] = [part for g in node.generators for part in g.ifs]
        inner += [g.iter for g in node.generators[1:]]
        inner += [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
        self._within(inner, hidden=self.hidden | targets)

    visit_ListComp = visit_SetComp = visit_GeneratorExp = visit_DictComp = _comprehension


def _arguments(arguments: ast.arguments) -> list[ast.arg]:
    rest = [a for a in (arguments.vararg, arguments.kwarg) if a]
    return [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, *rest]


def _stored(node: ast.AST) -> Iterator[str]:
    return (n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store))


def _bound_in(body: list[ast.stmt]) -> Iterator[str]:
    """The names that a body binds in its own scope."""
    waiting: list[ast.AST] = list(body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
            continue
        if isinstance(node, ast.Lambda | ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp):
            # `:=` inside a comprehension binds outside it
            yield from (n.target.id for n in ast.walk(node) if isinstance(n, ast.NamedExpr))
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store | ast.Del):
            yield node.id
        elif isinstance(node, ast.Import | ast.ImportFrom) and not is_own_import(node):
            yield from (alias.asname or alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            yield node.name
        waiting += ast.iter_child_nodes(node)
