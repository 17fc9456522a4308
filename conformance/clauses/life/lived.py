"""A life that is lived: code that runs on the target, and comparisons of its results with the truth."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from types import CodeType
from typing import Any, Self

import torch

from conformance.clauses.life.life_case import LifeCase
from conformance.clauses.life.situation import Operation
from conformance.isolation.monkeypatches import PRISTINE
from conformance.judgement.judge import judge, worst
from conformance.judgement.linear_oracle import Expected
from conformance.judgement.outcomes import Inconclusive, Violation
from conformance.judgement.recording import Calls, note
from conformance.target.calls import calling
from conformance.target.subject import Subject, poisoned_memory

SHOWN = 40  # operations that a message names
ATTEMPTS = 4  # draws of inputs until a wrong result would fail


class Lived:
    """What the lives of all things have in common.

    Attributes:
        names: the variables of the code that has run: `layer`, `lora_A`, `y` and so on.
        calls: the code that has run.   judging: whether it only judges.
        now: what decides which operation may follow.
        past: the names of the operations so far.
        ratio: the worst error ÷ budget so far.
    """

    def __init__(self, subject: Subject, case: LifeCase, start: Any) -> None:
        self.subject, self.case, self.now = subject, case, start
        self.past: list[str] = []
        self.judging = False
        self.ratio: float | None = None

    def begin(self, setup: str, **names: Any) -> None:
        """Run the definitions that the code needs, beside these variables."""
        self.calls = Calls(setup)
        self.names: dict[str, Any] = {"torch": torch, "target": self.subject.target, **names}
        exec(_compiled(setup), self.names)
        note(calls=self.calls)

    def run(self, code: str, **given: Any) -> None:
        """Run lines of Python on the target, with further variables.

        Raises:
            Violation: if they raise an exception.
        """
        self.calls.lines.append((code, given, self.judging))
        self.names.update(given)
        last = self.past[-1] if self.past else "building"
        try:
            with poisoned_memory(), calling(f"{last} (`{_shown(code)}`)"):
                exec(_compiled(code), self.names)
        except Violation as violation:
            self.calls.asked = ""
            raise self.told(violation) from violation.__cause__

    def live(self, operations: Mapping[str, Any], judge: Callable[[Self], None]) -> float | None:
        """Live through the operations of the case, and judge after every one; return the worst error ÷ budget."""
        try:
            for name in ("", *self.case.operations):
                if name:
                    self.happen(operations[name])
                self.judging = True
                judge(self)
                self.judging = False
        finally:
            self.end()
        return self.ratio

    def happen(self, operation: Any) -> None:
        """Let one operation happen, and what always follows it."""
        self.act(operation)

    def end(self) -> None:
        """Give back what the life holds: files, regions."""

    def act(self, operation: Operation) -> None:
        """Let one operation happen, if it is allowed here and the target has it."""
        if not operation.fits(self.now) or not operation.available(self):
            return
        self.past.append(operation.name)
        self.calls.lines.append((f"# {operation.name}", {}, False))
        operation.act(self)
        self.now = operation.after(self.now)

    def compare(self, text: str, *candidates: Expected) -> None:
        """Compare the value of an expression with its expected value, or with one of several."""
        self.calls.asked, self.calls.said = text, ""
        actual = self.value(text)
        for expected in candidates:
            try:
                self.ratio = worst(self.ratio, judge(actual, expected))
            except Violation:
                continue
            return
        first = candidates[0]
        try:
            judge(actual, dataclasses.replace(first, name=f"{first.name}{self._since()}"))
        except Violation as violation:
            raise self.told(violation) from None

    def require(self, text: str, message: str) -> None:
        """Require that an expression is true."""
        self.calls.asked, self.calls.said = text, message
        with calling(f"`{text}`{self._since()}"):
            holds = bool(self.value(text))
        if not holds:
            raise self.told(Violation(f"{self._since()} {message}".strip()))

    def require_all(self, checks: list[tuple[str, str]]) -> None:
        """Require that expressions are true, at once where all are; each has the message of its failure."""
        try:
            with PRISTINE.suspended():
                right = all(self.value(f"[{', '.join(text for text, _ in checks)}]"))
        except Exception:  # noqa: BLE001  (what is wrong shows below)
            right = False
        for check in [] if right else checks:
            self.require(*check)

    def value(self, text: str) -> Any:
        """The value of an expression."""
        return eval(_compiled(text, "eval"), self.names)

    def _since(self) -> str:
        """The last operation as messages say it; a new thing is wrong whatever may happen to it."""
        return f" after {self.past[-1]}" if self.past else " at first"

    def told(self, violation: Violation) -> Violation:
        """The violation, and the operations that led to it."""
        more = len(self.past) - SHOWN
        lived = (f"{more:,} operations, then " if more > 0 else "") + ", ".join(self.past[-SHOWN:])
        return Violation(f"{violation}\nlived    {lived}" if self.past[1:] else str(violation), violation.ratio)

    def decided(self, check: Callable[[], None]) -> None:
        """Run a check that draws x and g; draw again where a wrong result would pass.

        Raises:
            Inconclusive: if it would pass for every draw.
        """
        for attempt in range(ATTEMPTS):
            try:
                return check()
            except Inconclusive:
                if attempt == ATTEMPTS - 1:
                    raise
        return None


@contextmanager
def uninterpreted() -> Iterator[None]:
    """A region without Triton's interpreter."""
    before = os.environ.pop("TRITON_INTERPRET", None)
    try:
        yield
    finally:
        if before is not None:
            os.environ["TRITON_INTERPRET"] = before


def _shown(code: str) -> str:
    """The line of code that a message shows."""
    lines = [line.strip() for line in code.splitlines() if line.strip() and not line.startswith(("with ", "for "))]
    return lines[-1] if lines else ""


@lru_cache(maxsize=2048)
def _compiled(code: str, mode: str = "exec") -> CodeType:
    return compile(code, "<life>", mode)
