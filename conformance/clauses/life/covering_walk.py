"""A covering walk: sequences of operations in which all pairs, or triples, that may follow each other do so."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Mapping

from conformance.clauses.life.situation import Operation

Words = tuple[str, ...]
Situation = Hashable  # each kind of life has its own
Node = tuple[Situation, Words]  # a situation, and the last operations


def possible(operations: Mapping[str, Operation], start: Situation, strength: int) -> set[Words]:
    """Every run of `strength` operations that may follow each other, in some life that begins with `start`."""
    steps: dict[Situation, list[tuple[str, Situation]]] = {}
    waiting = [start]
    while waiting:
        now = waiting.pop()
        if now not in steps:
            steps[now] = [(name, one.after(now)) for name, one in operations.items() if one.fits(now)]
            waiting += [then for _, then in steps[now]]
    runs: dict[Situation, set[Words]] = {now: {()} for now in steps}
    for _ in range(strength):
        runs = {now: {(name, *run) for name, then in steps[now] for run in runs[then]} for now in steps}
    return set().union(*runs.values())


class Walk:
    """Lives that meet every run of `strength` operations; they depend on the arguments only."""

    def __init__(self, operations: Mapping[str, Operation], start: Situation, strength: int, length: int) -> None:
        self.operations, self.start, self.strength, self.length = dict(operations), start, strength, length
        self.left = possible(operations, start, strength)
        self._steps: dict[Situation, tuple[tuple[str, Situation], ...]] = {}

    def lives(self) -> list[Words]:
        """The lives, each of at most `length` operations."""
        found = []
        while self.left:
            life: Words = ()
            now = self.start
            while len(life) < self.length and (path := self._path(now, life)) and len(life) + len(path) <= self.length:
                for name in path:
                    life = (*life, name)
                    self.left.discard(life[-self.strength :])
                    now = self.operations[name].after(now)
            found.append(life)
        return found

    def steps(self, now: Situation) -> tuple[tuple[str, Situation], ...]:
        """The operations that may come next, each with the situation after it."""
        if now not in self._steps:
            fitting = ((name, one.after(now)) for name, one in self.operations.items() if one.fits(now))
            self._steps[now] = tuple(fitting)
        return self._steps[now]

    def _path(self, now: Situation, life: Words) -> Words:
        """The shortest continuation whose last operation completes a run that has not been met; empty without one."""
        if not self.left:
            return ()
        keep = self.strength - 1
        first: Node = (now, life[max(0, len(life) - keep) :])
        waiting: deque[tuple[Node, Words]] = deque([(first, ())])
        seen = {first}
        while waiting:
            (here, last), path = waiting.popleft()
            for name, there in self.steps(here):
                words = (*last, name)
                if words[-self.strength :] in self.left:
                    return (*path, name)
                node = (there, words[max(0, len(words) - keep) :])
                if node not in seen:
                    seen.add(node)
                    waiting.append((node, (*path, name)))
        return ()
