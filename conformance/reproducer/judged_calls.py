"""Calls by which a check judges: recorded on the tape with what fails in them."""

from __future__ import annotations

import ast
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from conformance.cases.memory_layout import Placed
from conformance.cases.seeding import seed_torch
from conformance.isolation import process_state
from conformance.judgement.judge import compare, judge, judge_together
from conformance.judgement.outcomes import Violation
from conformance.numerics.formats import numbers
from conformance.reproducer.setting_code import SETTING_CODE
from conformance.reproducer.steps import Failure, Step
from conformance.reproducer.tape import Tape
from conformance.target.expected_errors import refuses

WORST = re.compile(r"worst .*?\[([\d, ]*)\]: got ")  # the index of the worst element in a message


def seeded(tape: Tape, seed: int) -> None:
    """Seed torch, as a step."""
    seed_torch(seed)
    manual = ast.parse(f"torch.manual_seed({seed})", mode="eval").body
    tape.steps.append(Step(tape.next_name(), manual, hint="seed"))


def made_anew(tape: Tape, subject: Any, *, function: Callable[..., Any]) -> Any:
    """What a function keeps for later cases, made anew at its first call, so that the tape has how."""
    if function not in tape.kept:
        tape.kept[function] = function(subject, fresh=True)
    return tape.kept[function]


def judged(tape: Tape, actual: Any, expected: Any) -> Any:
    """Judge a tensor; a violation is the failure."""
    return _compared(tape, judge, actual, expected, has_dtype=True)


def judged_together(tape: Tape, results: Any) -> Any:
    """Judge the results of one call; the first violation is the failure."""
    return judge_together(results, partial(judged, tape))


def compared(tape: Tape, got: Any, expected: Any) -> Any:
    """Compare an array; a violation is the failure."""
    return _compared(tape, compare, got, expected, has_dtype=False)


def _compared(tape: Tape, comparison: Any, actual: Any, expected: Any, *, has_dtype: bool) -> Any:
    known = actual is None or tape.say.knows(actual) or isinstance(actual, float | int)
    code = tape.code_or_none(lambda: tape.say(actual)) if known else None
    if actual is None:
        code = tape.last_none
    elif isinstance(actual, float | int):
        code = tape.variable(actual)
    try:
        return comparison(actual, expected)
    except Violation as found:
        if code is not None:
            place = WORST.match(str(found))
            worst = tuple(map(int, place[1].split(", "))) if place and place[1] else ()
            tape.failures.append(Failure("compared", actual=code, expected=expected, has_dtype=has_dtype, worst=worst))
        raise


def values_of(tape: Tape, tensor: Any) -> Any:
    """The values of a tensor as an array in float64."""
    found = numbers(tensor)
    if not tape.say.knows(tensor) or id(tensor) in tape.leaves:
        return found
    return tape.computed(found, lambda: _chain(tape.say(tensor), "detach", "double", "numpy"))


def changed(tape: Tape, placed: Placed) -> bool:
    """Whether an operand has been modified: a comparison with a copy from the beginning."""
    found, tensor = placed.contents_changed(), placed.tensor
    leaf = next((step for step in tape.steps if step.value is tensor and step.leaf is not None), None)
    if leaf is not None:
        before = Step(
            f"{leaf.name}_before", _chain(tape.say(tensor), "clone"), hint=f"{leaf.hint}_before", effect=False
        )
        if all(step.name != before.name for step in tape.steps):
            tape.steps.insert(tape.steps.index(leaf) + 1, before)
        equal = ast.parse(f"not torch.equal({leaf.name}, {before.name})", mode="eval").body
        tape.computed(found, lambda: equal)
    return found


@contextmanager
def settings_kept(tape: Tape, what: str, but: tuple[str, ...] = ()) -> Iterator[None]:
    """A region in which no setting may change; the first that changes is the failure."""
    before, begun = process_state.taken(tuple(SETTING_CODE)), len(tape.steps)
    try:
        with process_state.kept(what, but):
            yield
    except Violation:
        now = process_state.taken(tuple(SETTING_CODE))
        changed = [name for name in before if name not in but and now[name] != before[name]]
        if changed:
            _changed(tape, changed[0], begun)
        raise


def folder_made(tape: Tape, *arguments: Any, **options: Any) -> tempfile.TemporaryDirectory[str]:
    """Make a temporary folder, as a step."""
    made = tempfile.TemporaryDirectory(*arguments, **options)
    step = Step(tape.next_name(), ast.parse("tempfile.mkdtemp()", mode="eval").body, hint="folder", effect=False)
    tape.steps.append(step)
    tape.say.folders[made.name] = ast.Name(step.name, ast.Load())
    return made


def _changed(tape: Tape, setting: str, begun: int) -> None:
    read = ast.parse(SETTING_CODE[setting], mode="eval").body
    before = Step(f"_v{len(tape.steps)}", read, hint="before", effect=False)
    tape.steps.insert(begun, before)
    condition = ast.Compare(read, [ast.NotEq()], [ast.Name(before.name, ast.Load())])
    acts = frozenset(step.name for step in tape.steps[begun:] if step.effect)
    tape.failures.append(Failure("required", condition=condition, acts=acts))


def refused(tape: Tape, what: str, call: Callable[[], Any], *mentions: str, types: Any = (ValueError,)) -> str:
    """Make a call that must raise; if it does not, that is the failure."""
    begun = len(tape.steps)
    try:
        return refuses(what, call, *mentions, types=types)
    except Violation:
        steps = [step for step in tape.steps[begun:] if step.leaf is None]
        if steps:
            tape.failures.append(Failure("returned", step=steps[-1], types=tuple(types), mentions=mentions))
        raise


def _chain(code: ast.expr, *methods: str) -> ast.expr:
    """The code of calls of methods without arguments, one on the result of the other."""
    for name in methods:
        code = ast.Call(ast.Attribute(code, name, ast.Load()), [], [])
    return code


# for each function of the suite that judges, the one that records its call
RECORDERS = (
    (seed_torch, seeded),
    (torch.manual_seed, seeded),
    (judge, judged),
    (judge_together, judged_together),
    (compare, compared),
    (numbers, values_of),
    (refuses, refused),
    (Placed.contents_changed, changed),
    (tempfile.TemporaryDirectory, folder_made),
    (process_state.kept, settings_kept),
)
