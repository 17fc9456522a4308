"""The reduction of a script: the fewest steps that show the defect, found by running the script without each."""

from __future__ import annotations

import ast
import dataclasses
import io
import random
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch

from conformance.cases.seeding import seed_torch
from conformance.isolation import process_state
from conformance.reproducer.compact_code import close
from conformance.reproducer.literals import Unsayable
from conformance.reproducer.module_source import NoSource
from conformance.reproducer.statement_removal import shortened
from conformance.reproducer.steps import Step
from conformance.reproducer.straight_script import Options, Script, names_in

TRIES = 240  # scripts that are run to find which steps are needed; a number, so that every run finds the same
SECONDS = 30.0  # after which a slow target's script stays as it is
DEFECT, RIGHT, BROKEN = "defect", "right", "broken"  # what a script says
SEED = 987654321  # none that a target or a case would use
LONG = 100  # characters of a line into which another is not written


class Reduction:
    """The search for the shortest script that shows a defect.

    Args:
        comparable: whether `reference` can stand for the target in the script, and then shows no defect.
    """

    def __init__(self, script: Script, *, comparable: bool) -> None:
        self.script, self.title, self.comparable = script, script.title, comparable
        self.deadline, self.tries = time.perf_counter() + SECONDS, TRIES
        self.options = Options()
        self.sentence: str | None = None  # of the first script that shows the defect

    def text(self) -> str | None:
        """The shortest script found, or None if no script shows the defect."""
        failure, steps = self.script.failure, self.script.tape.steps
        if failure.step is not None:
            steps = steps[: steps.index(failure.step) + 1]
        steps = self._needed(steps)
        for self.options in OPTIONS:
            if self._shows(steps):
                break
        else:
            return None
        told = self.comparable or failure.kind == "compared"  # else nothing would tell which values matter
        if told:
            steps = self._without_needless(self._without_arguments(self._without_needless(steps)))
        self._merge_leaves(steps)
        self._inline(steps)
        if told:
            self._shorten_definitions(steps)
        return self.script.text(steps, self.options)

    def _without_needless(self, steps: list[Step]) -> list[Step]:
        """Leave out steps that make no difference: many at once, then fewer, at last one by one from the end."""
        size = len(steps) // 2
        while size > 0:
            end = len(steps)
            while end > 0:
                fewer = self._without(steps, steps[max(end - size, 0) : end])
                if len(fewer) < len(steps) and self._shows(fewer):
                    steps = fewer
                end = min(end - size, len(steps))
            size //= 2
        return steps

    def _without(self, steps: list[Step], fewer: list[Step]) -> list[Step]:
        """The steps without those of some others that have an effect and that no step left uses."""
        gone = [step for step in fewer if step.effect and step is not self.script.failure.step]
        while True:
            left = [step for step in steps if step not in gone]
            uses = self._uses(left)
            used = [step for step in gone if uses[step.name]]
            if not used:
                return self._needed(left)
            gone = [step for step in gone if step not in used]

    def _without_arguments(self, steps: list[Step]) -> list[Step]:
        """Leave out the named arguments that need other steps and make no difference, or give None for them."""
        for step in steps:
            whole = step.node
            if not isinstance(whole, ast.Call) or step is self.script.failure.step:
                continue
            for keyword in (each for each in whole.keywords if names_in(each.value)):
                others = [each for each in step.node.keywords if each.arg != keyword.arg]  # type: ignore[union-attr]
                for given in (others, [*others, ast.keyword(keyword.arg, ast.Constant(None))]):
                    before, step.node = step.node, ast.Call(whole.func, whole.args, given)
                    fewer = self._needed(steps)
                    if self._shows(fewer):
                        steps = fewer
                        break
                    step.node = before
        return steps

    def _shorten_definitions(self, steps: list[Step]) -> None:
        """Leave out the statements of the suite's definitions that make no difference."""
        self.script.text(steps, self.options)

        def shows(text: str) -> bool:
            before, self.script.shorter = self.script.shorter, text
            if self._shows(steps):
                return True
            self.script.shorter = before
            return False

        if self.script.definitions:
            self.script.shorter = close(shortened(self.script.definitions, shows))

    def _merge_leaves(self, steps: list[Step]) -> None:
        """Let equal operands be one tensor, where that makes no difference."""
        leaves = [(step, step.leaf) for step in steps if step.leaf is not None]
        for n, (later, values) in enumerate(leaves):
            for earlier, same in leaves[:n]:
                alike = earlier.hint == later.hint and same.equals(values)
                if alike and earlier.name not in self.script.inlined:
                    self._try({later.name: ast.Name(earlier.name, ast.Load())}, steps)
                    break

    def _inline(self, steps: list[Step]) -> None:
        """Write values that are used once where they are used, except operands that have a name."""
        for n, step in enumerate(steps):
            node = self._unnamed(step) if step.leaf is not None else step.node
            if not isinstance(node, ast.expr) or self._uses(steps)[step.name] != 1:
                continue
            users = [other for other in steps[n + 1 :] if other.node is not None and step.name in names_in(other.node)]
            if users and users[0].modes != step.modes and step.leaf is None:
                continue
            user = users[0].node if users else None
            if user is not None and len(self.script.code(node)) + len(self.script.code(user)) > LONG:
                continue
            if step.effect and (not users or steps.index(users[0]) != n + 1):
                continue
            self._try({step.name: node}, steps)

    def _unnamed(self, step: Step) -> ast.expr | None:
        """The literal of an operand of which nothing but its values is known."""
        leaf = step.leaf
        plain = step.hint == "tensor" and leaf is not None and not leaf.requires_grad and not self.options.strided
        return ast.parse(leaf.literal, mode="eval").body if plain and leaf is not None else None

    def _try(self, inlined: dict[str, Any], steps: list[Step]) -> None:
        before = self.script.inlined
        self.script.inlined = before | inlined
        if not self._shows(steps):
            self.script.inlined = before

    def _uses(self, steps: list[Step]) -> Counter[str]:
        nodes = [*self.script.roots, *(step.node for step in steps if step.node is not None)]
        return Counter(n.id for node in nodes for n in ast.walk(node) if isinstance(n, ast.Name))

    def _needed(self, steps: list[Step]) -> list[Step]:
        return needed(steps, self.script.roots, self.script.failure.acts)

    def _shows(self, steps: list[Step]) -> bool:
        self.tries -= 1
        if self.tries < 0 or time.perf_counter() > self.deadline:
            return False
        try:
            found = said(self.script.text(steps, self.options), self.title)
        except CANNOT:
            return False
        if found.kind != DEFECT:
            return False
        if not self.comparable:  # what is left out must not change a number of the sentence
            self.sentence = self.sentence or found.sentence
            return found.sentence == self.sentence
        right = dataclasses.replace(self.options, right=True)
        return said(self.script.text(steps, right), self.title).kind == RIGHT


OPTIONS = [Options(strided, filled) for filled in (False, True) for strided in (False, True)]
OPTIONS += [Options(seeded=True), Options(seeded=True, filled=True)]
CANNOT = (Unsayable, NoSource, ValueError, SyntaxError, RecursionError)


def needed(steps: list[Step], roots: list[Any], acts: frozenset[str] = frozenset()) -> list[Step]:
    """The steps on whose values, or on whose effects on these values, the roots and these acts depend."""
    alive = set(acts).union(*(names_in(root) for root in roots))
    kept: set[str] = set()
    while True:
        before = len(kept), len(alive)
        for step in reversed(steps):
            names = names_in(step.node) if step.node is not None else set()
            variables = {name for name in names if name.startswith("_v")}
            if step.name in alive or (step.effect and (not variables or variables & alive)):
                kept.add(step.name)
                alive |= {*names, step.name}
        if before == (len(kept), len(alive)):
            return [step for step in steps if step.name in kept]


class Said(NamedTuple):
    """What a script says: DEFECT, RIGHT or BROKEN, and its sentence."""

    kind: str
    sentence: str = ""


def said(text: str, title: str) -> Said:
    """Whether a script, run in this process, shows the defect, is right, or cannot run."""
    try:
        code = compile(text, "<reproducer>", "exec")
        with _state_kept():
            exec(code, {"__name__": "reproducer"})
    except SystemExit as ended:
        sentence = str(ended.code)
        return Said(DEFECT if sentence.startswith(title) else BROKEN, sentence)
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001  (whatever the target raises)
        return Said(BROKEN)
    return Said(RIGHT)


@contextmanager
def _state_kept() -> Iterator[None]:
    """A region without output, after which torch's modes, random states and the import path are as before."""
    before, path = process_state.taken(process_state.RESTORED), list(sys.path)
    streams = sys.stdout, sys.stderr
    python, state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # even if warnings are errors here
            sys.stdout = sys.stderr = io.StringIO()  # of processes that the script starts too
            random.seed(SEED)
            np.random.seed(SEED)
            seed_torch(SEED)
            yield
    finally:
        sys.stdout, sys.stderr = streams
        sys.path[:] = path
        process_state.restore(before)
        random.setstate(python)
        np.random.set_state(state)
