"""What the ranks of a check did: the tape of each rank, brought back through files and joined to one list of steps."""

from __future__ import annotations

import ast
import dataclasses
import pickle
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from conformance.reproducer.condition import violated
from conformance.reproducer.literals import Leaf, Unsayable
from conformance.reproducer.steps import Failure, Step
from conformance.reproducer.tape import Tape

ANSWER = "_answer"  # the first word of the name that stands for a result of a rank
Work = Callable[[int], dict[str, Any]]


@dataclass
class RankRecord:
    """What one rank did.

    Attributes:
        steps: its tape.   answers: the code of each result.   failure: how it failed, if it did.
    """

    steps: list[Step]
    answers: dict[str, ast.expr] = field(default_factory=dict)
    failure: Failure | None = None


@dataclass(frozen=True)
class RankLeaf(Leaf):
    """An operand that differs from rank to rank."""

    parts: tuple[Leaf, ...] = ()

    @cached_property
    def literal(self) -> str:
        """The code that makes the tensor of a rank."""
        return f"[{', '.join(part.literal for part in self.parts)}][rank]"

    @property
    def seeded(self) -> str:
        """The same: each rank has its own values."""
        return self.literal


def ranked(tape: Tape, world: int, work: Work, *, function: Callable[..., list[Any]]) -> list[Any]:
    """Run a work on new ranks, each of which records what it does."""
    with tempfile.TemporaryDirectory() as folder:
        before = len(tape.steps)

        def recorded(rank: int) -> dict[str, Any]:
            answers: dict[str, Any] = {}
            del tape.steps[before:]  # by which the rank joined the group
            try:
                answers = work(rank)
                return answers
            finally:
                Path(folder, str(rank)).write_bytes(pickle.dumps(_record(tape, answers)))

        try:
            answers = function(world, recorded, fresh=True)
            tape.ranks = _read(folder, world)
        except BaseException:
            tape.ranks = _read(folder, world)
            raise
    for rank, found in enumerate(answers):
        for key, value in found.items():
            tape.say.learn(value, lambda name=f"{ANSWER}_{rank}_{key}": ast.Name(name, ast.Load()))  # type: ignore[misc]
    return answers


def _read(folder: str, world: int) -> list[RankRecord]:
    """The records that the ranks left; a rank that was killed left none."""
    paths = [Path(folder, str(rank)) for rank in range(world)]
    return [pickle.loads(path.read_bytes()) if path.exists() else RankRecord([]) for path in paths]


def _record(tape: Tape, answers: dict[str, Any]) -> RankRecord:
    codes = {key: tape.code_or_none(lambda value=value: tape.say(value)) for key, value in answers.items()}  # type: ignore[misc]
    record = RankRecord([_plain(step) for step in tape.steps], {key: code for key, code in codes.items() if code})
    for failure in tape.failures[-1:] if not answers else ():
        condition = failure.condition
        if failure.kind == "required":
            condition = tape.code_or_none(lambda failure=failure: violated(tape, failure))  # type: ignore[misc]
        if failure.kind != "required" or condition is not None:
            step = _plain(failure.step) if failure.step else None
            record.failure = dataclasses.replace(failure, condition=condition, names=None, callers=(), step=step)
    return record


def _plain(step: Step) -> Step:
    """A step without its value; of an error, only the kind."""
    raised = Exception() if step.raised is not None else None
    return dataclasses.replace(step, value=None, raised=raised)


def joined(records: Sequence[RankRecord]) -> list[Step]:
    """The steps of all ranks as one list; what differs from rank to rank is looked up by `rank`.

    Raises:
        Unsayable: if the ranks did not make the same calls.
    """
    if len({len(record.steps) for record in records}) > 1:
        raise Unsayable("ranks that make other calls")
    return [_one(steps) for steps in zip(*(record.steps for record in records), strict=True)]


def _one(steps: Sequence[Step]) -> Step:
    first = steps[0]
    leaves = [step.leaf for step in steps if step.leaf is not None]
    if len({step.name for step in steps}) > 1 or len(leaves) not in (0, len(steps)):
        raise Unsayable("ranks that make other calls")
    if not leaves:
        return dataclasses.replace(first, node=_node([step.node for step in steps]))
    if all(leaf.equals(leaves[0]) for leaf in leaves):
        return first
    own = leaves[0]
    return dataclasses.replace(first, leaf=RankLeaf(own.values, own.stride, own.requires_grad, tuple(leaves)))


def _node(nodes: Sequence[Any]) -> Any:
    """One syntax tree for those of all ranks."""
    first = nodes[0]
    if all(type(node) is type(first) for node in nodes) and isinstance(first, ast.AST):
        if isinstance(first, ast.Constant):
            values = [node.value for node in nodes]
            if all(type(v) is type(values[0]) and v == values[0] for v in values):
                return first
            choice = ast.Tuple([ast.Constant(value) for value in values], ast.Load())
            return ast.Subscript(choice, ast.Name("rank", ast.Load()), ast.Load())
        fields = {name: _node([getattr(node, name, None) for node in nodes]) for name in first._fields}
        return ast.copy_location(type(first)(**fields), first) if hasattr(first, "lineno") else type(first)(**fields)
    if isinstance(first, list) and len({len(node) for node in nodes}) == 1:
        return [_node(each) for each in zip(*nodes, strict=True)]
    if all(node == first for node in nodes):
        return first
    raise Unsayable("ranks that make other calls")


def rank_of(node: ast.AST) -> int | None:
    """The rank whose results an expression names, if they are of one rank."""
    names = [n.id for n in ast.walk(node) if isinstance(n, ast.Name) and n.id.startswith(ANSWER)]
    ranks = {int(name.split("_")[2]) for name in names}
    return ranks.pop() if len(ranks) == 1 else None


class Answers(ast.NodeTransformer):
    """Replaces the names of a rank's results by their code on that rank."""

    def __init__(self, record: RankRecord) -> None:
        self.record = record

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if not node.id.startswith(ANSWER):
            return node
        key = node.id.split("_", 3)[3]
        if key not in self.record.answers:
            raise Unsayable(f"the result {key}")
        return self.record.answers[key]
