"""A tape: what a check does with a target's objects, as straight-line code, and how the check fails."""

from __future__ import annotations

import ast
import operator
import sys
from collections.abc import Callable, Sequence
from functools import partial
from types import FrameType
from typing import Any

import torch

from conformance.judgement.outcomes import require
from conformance.reproducer.code_owner import owner_of
from conformance.reproducer.expressions import Expressions, called
from conformance.reproducer.hooked_code import TAPE
from conformance.reproducer.literals import Leaf, Unsayable
from conformance.reproducer.operator_names import OPERATORS
from conformance.reproducer.recorded_calls import RecordedCalls, only_reads
from conformance.reproducer.source_sites import Site, site_of
from conformance.reproducer.steps import SIMPLE, Failure, Step, hint_of, modes_on
from conformance.reproducer.suite_objects import SuiteObjects

MOST, FOREVER = 600, 1 << 30  # steps of a check; a check of more is not recorded to its end


class Tape:
    """The steps of a check so far. Hooked code calls its methods in place of operations.

    Args:
        recorders: functions of the suite, each with one that is called in its place, with the tape first.
    """

    def __init__(self, subject: Any, recorders: Sequence[tuple[Any, Any]] = ()) -> None:
        self.subject, self.recorders, self.steps = subject, recorders, list[Step]()
        self.failures: list[Failure] = []  # possible ones, the last that happened is the best
        self.ranks: list[Any] = []  # what each rank did, a `RankRecord`, if the check runs on ranks
        self.kept: dict[Any, Any] = {}  # what functions of the suite have made for later
        self.paused = 0
        self.sites: dict[Site, Step] = {}  # the last step of each call in the suite's source
        self.leaves: set[int] = set()
        self.last_none: ast.expr = ast.Constant(None)  # the code of the attribute that was last None
        self.say = Expressions(subject, self._leaf)
        self.calls = RecordedCalls(self.say)
        self.say.objects = self.objects = SuiteObjects(
            self.say, lambda node, hint: self._add(node, hint, effect=False).name
        )

    def call(self, function: Any, /, *arguments: Any, **options: Any) -> Any:
        """Call a function, and record the call if it is one on the target's or torch's objects."""
        if self.paused:
            return function(*arguments, **options)
        own = getattr(function, "__func__", function)
        recorder = next((recorder for known, recorder in self.recorders if own is known), None)
        if recorder is not None:
            given = arguments if own is function else (function.__self__, *arguments)
            return self._at_site(sys._getframe(1), lambda: recorder(self, *given, **options))
        if function is setattr or (function is getattr and hasattr(*arguments[:2])):
            return self.set_attribute(*arguments) if function is setattr else self.attribute(*arguments[:2])
        if self.calls.is_recorded(function, arguments, options):
            frame = sys._getframe(1)
            self._look_up_names(frame.f_locals, (*arguments, *options.values()))
            return self._at_site(frame, lambda: self._recorded(function, arguments, options))
        if self.calls.is_of_wrapper(function):
            self._pass_on(function, arguments, options)
        if self.calls.is_of_files(function, arguments, options):
            return self._at_site(sys._getframe(1), lambda: self._recorded(function, arguments, options))
        value = function(*arguments, **options)
        self._hint(value, arguments)
        if isinstance(function, type) and owner_of(function) == "suite":
            self.objects.remember(value, function, arguments, options)
        return value

    def _at_site(self, frame: FrameType, record: Callable[[], Any]) -> Any:
        """Record a call, and remember where in the source it stands."""
        before = len(self.steps)
        try:
            return record()
        finally:
            made = [step for step in self.steps[before:] if step.leaf is None]
            if made:
                self.sites[site_of(frame)] = made[-1]

    def _recorded(self, function: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        act = partial(function, *arguments, **options)
        if function is torch.autograd.backward and len(arguments) == 2 and len(arguments[0]) == 1:
            (y,), (upstream,) = arguments
            given = {name: value for name, value in options.items() if value}
            method = self.say.method(y, "backward") if self.say.knows(y) else None
            return self._step(lambda: method and called(method, [self.say(upstream)], given, self.say), act, "")
        if self.say.is_suites_module(function):
            made = partial(self.objects.call, function, self.say.function(function), arguments, options)
            return self._step(made, act, hint_of(function))
        code = partial(self._code_of_call, function, arguments, options)
        return self._step(code, act, hint_of(function), effect=not only_reads(function))

    def _code_of_call(self, function: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> ast.expr:
        return called(self.say.function(function), map(self.say, arguments), options, self.say)

    def _pass_on(self, function: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        """Record a call of a wrapper's method as calls on the layers that it wraps; torch makes them."""
        for child in function.__self__.children():
            if self.say.knows(child):
                method = self.say.method(child, function.__name__)
                self._add(called(method, map(self.say, arguments), options, self.say), "")

    def attribute(self, owner: Any, name: str) -> Any:
        """Read an attribute, and remember where it comes from."""
        value = getattr(owner, name)
        if value is None and not self.paused and self.say.knows(owner):
            self.last_none = self.say.method(owner, name)
        if not self.paused and not isinstance(value, SIMPLE) and not _is_method(value):
            self.say.attribute(owner, name, value)
        return value

    def item(self, owner: Any, index: Any) -> Any:
        """Read an item, and remember where it comes from."""
        value = owner[index]
        self._hint(value, (index,))
        if not self.paused and not isinstance(value, SIMPLE) and self.say.knows(owner):
            if isinstance(value, torch.Tensor) and isinstance(owner, torch.Tensor):
                return self.computed(value, lambda: ast.Subscript(self.say(owner), self.say(index), ast.Load()))
            self.say.learn(value, lambda: ast.Subscript(self.say(owner), self.say(index), ast.Load()))
        return value

    def binary(self, kind: str, left: Any, right: Any) -> Any:
        """Apply an operator to two values."""
        result = getattr(operator, OPERATORS[kind])(left, right)
        if self.paused or not self.calls.is_dynamic(left, right):
            return result

        def code() -> ast.expr:
            sides, operation = (self.say(left), self.say(right)), getattr(ast, kind)()
            if isinstance(operation, ast.cmpop):
                return ast.Compare(sides[0], [operation], [sides[1]])
            return ast.BinOp(sides[0], operation, sides[1])

        return self.computed(result, code)

    def unary(self, kind: str, value: Any) -> Any:
        """Apply an operator to a value."""
        result = getattr(operator, OPERATORS[kind])(value)
        if self.paused or not self.calls.is_dynamic(value):
            return result
        return self.computed(result, lambda: ast.UnaryOp(getattr(ast, kind)(), self.say(value)))

    def set_attribute(self, owner: Any, name: str, value: Any) -> None:
        """Assign to an attribute."""
        if self.paused or not self.say.knows(owner):
            setattr(owner, name, value)
            return
        self._assign(
            lambda: ast.Attribute(self.say(owner), name, ast.Store()), value, lambda: setattr(owner, name, value)
        )

    def set_item(self, owner: Any, index: Any, value: Any) -> None:
        """Assign to an item."""

        def act() -> None:
            owner[index] = value

        if self.paused or not self.say.knows(owner):
            act()
            return
        self._assign(lambda: ast.Subscript(self.say(owner), self.say(index), ast.Store()), value, act)

    def require(self, *given: Any) -> None:
        """Check a requirement of the suite; the first that does not hold is the failure."""
        *arguments, module, place, names = given
        if not self.paused and not arguments[0]:
            self.failures.append(
                Failure("required", module=module, place=place, names=dict(names), callers=_callers(sys._getframe(2)))
            )
        require(*arguments)

    def _hint(self, value: Any, words: tuple[Any, ...]) -> None:
        """Name a tensor after the only word with which it was looked up."""
        texts = [word for word in words if isinstance(word, str)]
        if not isinstance(value, SIMPLE) and len(texts) == 1:
            self.say.hints[id(value)] = texts[0]

    def at_site(self, module: str, node: ast.Call) -> Step | None:
        """The last step that a call in the source of a module of the suite made."""
        return self.sites.get((module, node.lineno, node.end_lineno, node.col_offset, node.end_col_offset))

    def variable(self, value: Any) -> ast.expr | None:
        """The variable of a step of the target that gave this simple value."""
        for step in reversed(self.steps):
            alike = type(step.value) is type(value) and step.value == value
            if alike and step.effect and step.is_targets:
                return ast.Name(step.name, ast.Load())
        return None

    def _look_up_names(self, names: dict[str, Any], values: tuple[Any, ...]) -> None:
        """Name tensors after the variables of the suite that hold them."""
        wanted = {id(value) for value in values if isinstance(value, torch.Tensor)}
        for name, value in names.items():
            if id(value) in wanted:
                self.say.hints.setdefault(id(value), name)

    def code_or_none(self, code: Callable[[], Any]) -> Any:
        try:
            return code()
        except Unsayable:
            return None

    def computed(self, value: Any, code: Callable[[], ast.expr]) -> Any:
        """Record a value that an operator computed, a step without an effect unless a gradient passes through it."""
        node = self.code_or_none(code)
        if node is not None:
            in_graph = isinstance(value, torch.Tensor) and value.requires_grad
            step = self._add(node, "value", effect=in_graph)
            step.value = value
            if not isinstance(value, SIMPLE):
                self.say.name(value, step.name)
        return value

    def _step(self, code: Callable[[], Any], act: Callable[[], Any], hint: str, *, effect: bool = True) -> Any:
        node = self.code_or_none(code)
        if node is None:
            return act()
        step = self._add(node, hint, effect=effect)
        if len(self.steps) > MOST:
            self.paused = FOREVER
        self.paused += 1
        try:
            step.value = act()
        except BaseException as error:
            step.raised = error
            self.failures.append(Failure("raised", step=step))
            raise
        finally:
            self.paused -= 1
        if not isinstance(step.value, SIMPLE) and not self.say.knows(step.value):
            self.say.name(step.value, step.name)
        return step.value

    def _assign(self, target: Callable[[], ast.expr], value: Any, act: Callable[[], None]) -> None:
        node = self.code_or_none(lambda: ast.Assign([target()], self.say(value), lineno=1))
        if node is not None:
            self._add(node, "")
        act()

    def _add(self, node: Any, hint: str, *, effect: bool = True) -> Step:
        step = Step(self.next_name(), node, hint=hint, modes=modes_on(), effect=effect)
        self.steps.append(step)
        return step

    def next_name(self) -> str:
        return f"_v{len(self.steps)}"

    def _leaf(self, tensor: torch.Tensor, hint: str) -> str:
        """Record a tensor that the case gives, with its value when it is first seen; return its variable."""
        step = Step(self.next_name(), None, tensor, hint or "tensor", Leaf.of(tensor), effect=False)
        self.steps.append(step)
        self.leaves.add(id(tensor))
        return step.name


def _callers(frame: FrameType | None) -> tuple[tuple[str, int, dict[str, Any]], ...]:
    """The module, line and variables of each running function of hooked code, from a frame outwards."""
    found = []
    while frame is not None:
        if TAPE in frame.f_globals:
            found.append((frame.f_globals["__name__"], frame.f_lineno, dict(frame.f_locals)))
        frame = frame.f_back
    return tuple(found)


def _is_method(value: Any) -> bool:
    return getattr(value, "__self__", None) is not None
