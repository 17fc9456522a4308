"""A requirement that does not hold, as an expression over the variables of a script."""

from __future__ import annotations

import ast
import copy
import sys
from contextlib import suppress
from types import FunctionType
from typing import Any

import torch

from conformance.reproducer.code_owner import SUITE
from conformance.reproducer.helper_body import arguments_of, called_name, is_passed_over, statements
from conformance.reproducer.hooked_code import tree_of
from conformance.reproducer.literals import Unsayable
from conformance.reproducer.recorded_calls import COMBINING
from conformance.reproducer.steps import SIMPLE, TARGETS, Failure, Step
from conformance.reproducer.tape import Tape

OPPOSITE = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
PURE = ("adapter_of", "base_tensor", "dict", "list", "tuple")  # calls of these may be made again
DEPTH = 12  # expressions within expressions


def violated(tape: Tape, failure: Failure) -> ast.expr:
    """The code of an expression that is true while a requirement does not hold.

    Raises:
        Unsayable: if the expression uses an object that no code makes.
    """
    tree, (line, column) = tree_of(failure.module), failure.place
    calls = (n for n in ast.walk(tree) if isinstance(n, ast.Call) and (n.lineno, n.col_offset) == (line, column))
    call = next((n for n in calls if getattr(n.func, "id", "") == "require"), None)
    if call is None or failure.names is None:
        raise Unsayable("a requirement without a source")
    saying = _Saying(tape, failure.names, failure.module, _around(tree, line), line)
    saying.callers = [_Place(*each) for each in failure.callers]
    said = saying.said(call.args[0])
    if not any(isinstance(n, ast.Name) and n.id.startswith(("_v", *TARGETS, "_suite")) for n in ast.walk(said)):
        raise Unsayable("a requirement of nothing that the target gave")
    return _guarded(_negated(said), saying, line)


def _guarded(said: ast.expr, saying: _Saying, line: int) -> ast.expr:
    """The expression, where it is judged only if something is not None, after that condition."""
    for node in ast.walk(saying.function) if saying.function is not None else ():
        if not isinstance(node, ast.If) or not node.body[0].lineno <= line <= (node.body[-1].end_lineno or 0):
            continue
        if isinstance(node.test, ast.Compare) and isinstance(node.test.ops[0], ast.IsNot):
            with suppress(Unsayable):
                said = ast.BoolOp(ast.And(), [saying.said(node.test), said])
    return said


class _Place:
    """A line of a function of the suite that was running, and the function's local variables."""

    def __init__(self, module: str, line: int, names: dict[str, Any]) -> None:
        self.module, self.line, self.names = module, line, names
        self.function = _around(tree_of(module), line)


def _around(tree: ast.Module, line: int) -> ast.FunctionDef | None:
    """The innermost function around a line."""
    around = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.lineno <= line <= (n.end_lineno or 0)]
    return around[-1] if around else None


def _negated(said: ast.expr) -> ast.expr:
    if isinstance(said, ast.UnaryOp) and isinstance(said.op, ast.Not):
        return said.operand
    if isinstance(said, ast.Compare) and len(said.ops) == 1 and type(said.ops[0]) in OPPOSITE:
        return ast.Compare(said.left, [OPPOSITE[type(said.ops[0])]()], said.comparators)
    return ast.UnaryOp(ast.Not(), said)


class _Saying:
    """Writes expressions of a function of the suite over the variables of the script.

    Args:
        names: the local variables of the function.   module: its module.   function: its syntax tree, if it has one.
        line: the line of the expression.
    """

    def __init__(
        self,
        tape: Tape,
        names: dict[str, Any],
        module: str,
        function: ast.FunctionDef | None,
        line: int,
        depth: int = 0,
    ) -> None:
        self.tape, self.names, self.space = tape, names, vars(sys.modules[module])
        self.module, self.function, self.line, self.depth = module, function, line, depth
        self.bound: frozenset[str] = frozenset()
        self.given: dict[str, ast.expr] = {}
        self.callers: list[_Place] = []

    def said(self, node: ast.expr) -> ast.expr:
        """The code of an expression."""
        if isinstance(node, ast.Constant) or (isinstance(node, ast.Name) and node.id in self.bound):
            return node
        if isinstance(node, ast.Name):
            return self._name(node)
        found = None if self._is_open(node) else self._found(node)
        if found is not None:
            return found
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            inlined = self._inlined(node)
            if inlined is not None:
                return inlined
        return self._rebuilt(node)

    def _found(self, node: ast.expr) -> ast.expr | None:
        """The variable of a call that is on the tape, or the code of a value that is known or comes from no call."""
        step = self._step(node)
        if step is not None:
            return ast.Name(step.name, ast.Load())
        known, value = self._value(node)
        is_known = known and not isinstance(value, SIMPLE) and self.tape.say.knows(value)
        return self.tape.say(value) if is_known or (known and not self._is_dynamic(node)) else None

    def _step(self, node: ast.AST) -> Step | None:
        """The step of a call that the function around the requirement made last."""
        if self.function is None or not isinstance(node, ast.Call) or getattr(node.func, "attr", "") in COMBINING:
            return None
        return self.tape.at_site(self.module, node)

    def _rebuilt(self, node: ast.expr) -> ast.expr:
        new = copy.copy(node)
        if isinstance(node, ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp):
            inner = copy.copy(self)
            targets = {n.id for c in node.generators for n in ast.walk(c.target) if isinstance(n, ast.Name)}
            inner.bound = self.bound | targets
            new.generators = [  # type: ignore[attr-defined]
                ast.comprehension(c.target, inner.said(c.iter), [inner.said(i) for i in c.ifs], 0)
                for c in node.generators
            ]
            for name in ("elt", "key", "value"):
                if hasattr(node, name):
                    setattr(new, name, inner.said(getattr(node, name)))
            return new
        for name, value in ast.iter_fields(node):
            if isinstance(value, ast.expr):
                setattr(new, name, self.said(value))
            elif isinstance(value, list) and value and isinstance(value[0], ast.expr):
                setattr(new, name, [self.said(part) for part in value])
            elif isinstance(value, list) and value and isinstance(value[0], ast.keyword):
                setattr(new, name, [ast.keyword(k.arg, self.said(k.value)) for k in value])
        return new

    def _name(self, node: ast.Name) -> ast.expr:
        if node.id in self.given:
            return self.given[node.id]
        if node.id not in self.names:  # of the module, or a builtin
            return self.tape.say(self.space[node.id]) if node.id in self.space else node
        value, assigned = self.names[node.id], self._assigned(node.id)
        known = not isinstance(value, SIMPLE) and self.tape.say.knows(value)
        if known or not isinstance(value, (*SIMPLE, list, tuple, dict, set)):
            return self.tape.say(value)
        if assigned is not None and self.depth < DEPTH and self._is_dynamic(assigned):
            inner = copy.copy(self)
            inner.depth, inner.line = self.depth + 1, assigned.lineno
            try:
                return inner.said(assigned)
            except Unsayable:
                variable = self.tape.variable(value) if isinstance(assigned, ast.Call) else None
                if variable is None:
                    raise
                return variable
        passed = self._passed(node.id)
        return self.tape.say(value) if passed is None else passed

    def _passed(self, name: str) -> ast.expr | None:
        """What the caller passed for a parameter of the function, if it depends on what the target gave."""
        if self.function is None or not self.callers or self.depth >= DEPTH:
            return None
        parameters = [each.arg for each in self.function.args.args]
        caller = self.callers[0]
        outer = _Saying(self.tape, caller.names, caller.module, caller.function, caller.line, self.depth + 1)
        outer.callers = self.callers[1:]
        for call in ast.walk(caller.function) if caller.function is not None and name in parameters else ():
            if not isinstance(call, ast.Call) or getattr(call.func, "id", "") != self.function.name:
                continue
            given = dict(zip(parameters, call.args, strict=False)) | {k.arg: k.value for k in call.keywords if k.arg}
            if name in given and call.lineno <= caller.line <= (call.end_lineno or 0):
                return outer.said(given[name]) if outer._is_dynamic(given[name]) else None
        return None

    def _assigned(self, name: str) -> ast.expr | None:
        """What the function last assigned to a name before the line."""
        nodes = ast.walk(self.function) if self.function is not None else ()
        plain = [node for node in nodes if isinstance(node, ast.Assign) and len(node.targets) == 1]
        found = None
        for node in sorted((node for node in plain if node.lineno < self.line), key=lambda node: node.lineno):
            target = node.targets[0]
            if getattr(target, "id", "") == name:
                found = node.value
            elif isinstance(target, ast.Tuple) and name in [getattr(part, "id", "") for part in target.elts]:
                index = [getattr(part, "id", "") for part in target.elts].index(name)
                each = node.value.elts[index] if isinstance(node.value, ast.Tuple) else None
                found = each or ast.Subscript(node.value, ast.Constant(index), ast.Load())
                ast.copy_location(found, node)
        return found

    def _is_open(self, node: ast.expr) -> bool:
        """Whether an expression uses a name that a comprehension around it binds, or a parameter."""
        inner = self.bound | set(self.given)
        return any(isinstance(n, ast.Name) and n.id in inner for n in ast.walk(node))

    def _value(self, node: ast.expr) -> tuple[bool, Any]:
        """Whether an expression can be evaluated without effects, and its value."""
        calls = [n for n in ast.walk(node) if isinstance(n, ast.Call | ast.Await | ast.NamedExpr)]
        again = all(isinstance(call, ast.Call) and called_name(call) in PURE for call in calls)
        if calls and not again and self._is_dynamic(node):
            return False, None
        expression = ast.fix_missing_locations(ast.Expression(copy.deepcopy(node)))
        try:
            self.tape.paused += 1
            return True, eval(compile(expression, "<condition>", "eval"), {**self.space, **self.names})
        except Exception:  # noqa: BLE001  (then the code of its parts is written)
            return False, None
        finally:
            self.tape.paused -= 1

    def _is_dynamic(self, node: ast.expr, depth: int = 0) -> bool:
        """Whether an expression depends on what the target gave."""
        if any(self._is_known(n) or self._step(n) is not None for n in ast.walk(node)):
            return True
        for name in (n.id for n in ast.walk(node) if isinstance(n, ast.Name)):
            if name in self.given or name in self.bound:
                return True
            if name not in self.names:
                continue
            value = self.names[name]
            if _has_known(self.tape, value) or self.tape.say.is_in_folder(value):
                return True
            if isinstance(value, (*SIMPLE, list, tuple, dict, set)) and depth < DEPTH:
                assigned = self._assigned(name)
                if self.tape.variable(value) is not None and isinstance(assigned, ast.Call):
                    return True
                if assigned is not None and self._is_dynamic(assigned, depth + 1):
                    return True
        return False

    def _is_known(self, node: ast.AST) -> bool:
        """Whether an attribute or an item, of something that is not known, is known itself."""
        if (
            not isinstance(node, ast.Attribute | ast.Subscript)
            or self._is_open(node)
            or any(isinstance(n, ast.Call) for n in ast.walk(node))
        ):
            return False
        known, value = self._value(node)
        return known and not isinstance(value, SIMPLE) and self.tape.say.knows(value)

    def _inlined(self, node: ast.Call) -> ast.expr | None:
        """A call of a function of the suite that is one expression, with the arguments in their places."""
        assert isinstance(node.func, ast.Name)
        function = self.names.get(node.func.id, self.space.get(node.func.id))
        if not isinstance(function, FunctionType) or not function.__module__.startswith(SUITE) or self.depth > DEPTH:
            return None
        tree = tree_of(function.__module__)
        found = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == function.__name__]
        if node.func.id in self.names or not found or any(isinstance(a, ast.Starred) for a in node.args):
            return None
        given = arguments_of(found[0], node)
        if given is None:
            return None
        inner = _Saying(self.tape, {}, function.__module__, None, 0, self.depth + 1)
        inner.bound = self.bound
        try:
            inner.given = {name: self.said(value) for name, value in given.items()}
            return inner._result(found[0].body)
        except Unsayable:  # then the script calls the function
            return None

    def _result(self, body: list[ast.stmt]) -> ast.expr | None:
        """What a function returns, if it only names values before."""
        for statement in statements(body):
            if isinstance(statement, ast.Return) and statement.value is not None:
                return self.said(statement.value)
            value = getattr(statement, "value", None)
            if isinstance(statement, ast.Assign | ast.AnnAssign) and value is not None:
                target = statement.target if isinstance(statement, ast.AnnAssign) else statement.targets[0]
                if not isinstance(target, ast.Name):
                    return None
                self.given[target.id] = self.said(value)
            elif not isinstance(statement, ast.Assert) and not is_passed_over(statement):
                return None
        return None


def _has_known(tape: Tape, value: Any) -> bool:
    if isinstance(value, dict):
        return any(_has_known(tape, item) for item in value.values())
    if isinstance(value, list | tuple | set):
        return tape.say.knows(value) or any(_has_known(tape, item) for item in value)
    return not isinstance(value, SIMPLE) and (isinstance(value, torch.Tensor) or tape.say.knows(value))
