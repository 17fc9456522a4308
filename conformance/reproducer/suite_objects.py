"""Objects that the suite makes for a check, as code: cases, functions with closures, and lists that callbacks fill."""

from __future__ import annotations

import ast
import copy
import inspect
import sys
from collections.abc import Callable
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any, Protocol

from conformance.cases.case import Case
from conformance.reproducer.code_owner import owner_of
from conformance.reproducer.hooked_code import TAPE, tree_of
from conformance.reproducer.literals import Unsayable
from conformance.reproducer.module_source import NoSource, defined
from conformance.reproducer.steps import SIMPLE

CONTAINERS = (list, dict, set)


class Sayer(Protocol):
    """What gives the code for an object, and knows which code it gave."""

    def __call__(self, value: Any) -> ast.expr:
        """The code for an object."""

    def knows(self, value: Any) -> bool:
        """Whether the code for an object is known."""

    def name(self, value: Any, variable: str) -> None:
        """Remember the variable that holds an object."""


class SuiteObjects:
    """The code for objects of the suite that a target is given.

    Args:
        say: gives the code for any object.   add: adds a step with this node and hint, and returns its variable.
    """

    def __init__(self, say: Sayer, add: Callable[[Any, str], str]) -> None:
        self.say, self.add = say, add
        self._made: dict[int, tuple[Any, type, tuple[Any, ...], dict[str, Any]]] = {}
        self._read: frozenset[str] = frozenset()  # the attributes that the class being called reads

    def remember(self, made: Any, kind: type, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        """Remember how an object of a class of the suite was made; its code is written if it is needed."""
        self._made[id(made)] = (made, kind, arguments, options)

    def is_made(self, value: Any) -> bool:
        """Whether it is known how an object was made."""
        return id(value) in self._made

    def made(self, value: Any) -> ast.expr:
        """The variable of an object of a class of the suite, which a new step makes again."""
        _, kind, arguments, options = self._made[id(value)]
        call = self.call(kind, self.say(kind), arguments, options)
        self.say.name(value, self.add(call, kind.__name__.lower().strip("_")))
        return self.say(value)

    def call(self, kind: type, function: ast.expr, arguments: tuple[Any, ...], options: dict[str, Any]) -> ast.expr:
        """The code of a call of a suite class; lists get variables, cases the fields that the class reads."""
        before, self._read = self._read, _words(kind)
        try:
            said = [self.shared(value) for value in arguments]
            keywords = [ast.keyword(name, self.shared(value)) for name, value in options.items()]
        finally:
            self._read = before
        return ast.Call(function, said, keywords)

    def shared(self, value: Any) -> ast.expr:
        """The code for an object that the check may look at later: a list gets a variable."""
        if not isinstance(value, CONTAINERS) or value or self.say.knows(value):
            return self.say(value)
        made: Any = {list: ast.List([], ast.Load()), dict: ast.Dict([], []), set: ast.parse("set()", mode="eval").body}
        self.say.name(value, self.add(made[type(value)], "events"))
        return self.say(value)

    def case(self, value: Case) -> ast.expr:
        """A case as a namespace with the fields that the called class reads.

        Raises:
            Unsayable: if no class of the suite is called.
        """
        if not self._read:
            raise Unsayable("a case")
        return self.say(SimpleNamespace(**{name: each for name, each in vars(value).items() if name in self._read}))

    def local_function(self, function: FunctionType) -> ast.expr:
        """A function defined within another one: a lambda as an expression, others as a definition.

        Raises:
            Unsayable: if its source is not found, or a name in it has no code.
        """
        node = _node(function)
        free = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        known = {name: cell.cell_contents for name, cell in free.items()}
        body = _Filled(self, node, known, function.__globals__).visit(copy.deepcopy(node))
        if isinstance(body, ast.Lambda):
            return body
        body.decorator_list, body.returns = [], None
        for each in (*body.args.posonlyargs, *body.args.args, *body.args.kwonlyargs, body.args.vararg, body.args.kwarg):
            if each is not None:
                each.annotation = None
        if ast.get_docstring(body) and len(body.body) > 1:
            del body.body[0]
        self.say.name(function, self.add(body, function.__name__))
        return self.say(function)


class _Filled(ast.NodeTransformer):
    """Replaces the free names of a function by the code for their values."""

    def __init__(self, objects: SuiteObjects, node: Any, known: dict[str, Any], space: dict[str, Any]) -> None:
        self.objects, self.known, self.space = objects, known, space
        stored = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        self.local = stored | {n.arg for n in ast.walk(node) if isinstance(n, ast.arg)}

    def visit_arg(self, node: ast.arg) -> ast.AST:
        return node

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if node.id in self.local:
            return node
        if node.id in self.known:
            return self.objects.shared(self.known[node.id])
        if node.id not in self.space:
            return node
        value = self.space[node.id]
        return _module(value) if isinstance(value, ModuleType) else self.objects.say(value)

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        """An attribute of an object that has no code itself."""
        if isinstance(node.value, ast.Name) and node.value.id in self.known and isinstance(node.ctx, ast.Load):
            owner = self.known[node.value.id]
            if not self.objects.say.knows(owner) and owner_of(type(owner)) == "suite":
                value = getattr(owner, node.attr)
                if isinstance(owner, Case) or not isinstance(value, SIMPLE):  # the others may change
                    return self.objects.shared(value)
        return self.generic_visit(node)


def _module(module: ModuleType) -> ast.expr:
    """The name of a module that scripts import where they use it."""
    name = {"numpy": "np"}.get(module.__name__, module.__name__)
    if name.partition(".")[0] not in ("np", "torch", *sys.stdlib_module_names):
        raise Unsayable(f"the module {name}")
    return ast.parse(name, mode="eval").body


def _node(function: FunctionType) -> Any:
    """The syntax tree of a local function."""
    line, module = function.__code__.co_firstlineno, inspect.getmodule(function)
    if module is None or TAPE not in vars(module):
        raise Unsayable(f"the function {function.__qualname__}")
    kinds = ast.Lambda if function.__name__ == "<lambda>" else ast.FunctionDef
    found = [n for n in ast.walk(tree_of(module.__name__)) if isinstance(n, kinds) and n.lineno == line]
    if len(found) != 1:
        raise Unsayable(f"the function {function.__qualname__}")
    return found[0]


def _words(kind: type) -> frozenset[str]:
    """The attributes that a class of the suite, and the classes of the suite from which it inherits, read."""
    found: set[str] = set()
    for each in kind.__mro__:
        if owner_of(each) == "suite":
            try:
                found |= {word for _, word in defined(each).words}
            except NoSource:
                continue
    return frozenset(found)
