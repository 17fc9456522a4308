"""Answers that are not the product are errors, and each encrypted input has keys of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from conformance.clauses.fhe.mode_simulate import BACKEND, REFUSED
from conformance.clauses.fhe.quantized_case import SMALL, Problem, QuantizedCase
from conformance.clauses.fhe.recording_backend import KeyPair, Parameters, Recorder
from conformance.clauses.fhe.split_model import Split
from conformance.clauses.hybrid.frozen_layer import backward
from conformance.judgement.outcomes import require
from conformance.specification.clause import clause
from conformance.target.expected_errors import refuses
from conformance.target.subject import Subject

NEEDS = ("CustomLinear", *BACKEND)
WRONG: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "off by one in its last element": lambda y: _plus(y, (-1, -1), 1),
    "off in two elements of a row": lambda y: _plus(_plus(y, (0, 0), 1), (0, -1), -1),
    "with two rows exchanged": lambda y: y.roll(1, 0),
    "negated": torch.neg,
}


def _backward(y: Any, g: torch.Tensor) -> None:
    """Run the backward pass."""
    y.backward(g)


def _plus(y: torch.Tensor, at: tuple[int, int], number: int) -> torch.Tensor:
    changed = y.clone()
    changed[at] += number
    return changed


def _always(answer: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    def answered(_: torch.Tensor) -> torch.Tensor:
        return answer

    return answered


class Liar(Recorder):
    """A backend whose `evaluate` answers wrongly while `lies` is set.

    Attributes:
        lies: a function of the right product, or None.   first, last: the first right product, and the last one.
    """

    def __init__(self) -> None:
        super().__init__(Parameters())
        self.lies: Any = None
        self.first = self.last = torch.zeros(0)

    def evaluate(self, *arguments: Any, **options: Any) -> bytes:
        """As in the base class, or a lie."""
        message = super().evaluate(*arguments, **options)
        self.last = self.messages[message]
        self.first = self.first if self.first.numel() else self.last
        return message if self.lies is None else self._message("result", self.lies(self.last))


@clause(
    "FHE-ANSWER",
    sentence="""In mode execute a result that is not the product of the inputs with the compiled weight is an error: of
    the forward and of the backward product, off by one in one element, with its rows exchanged, or an earlier result
    for other inputs. The next right result is used.""",
    why="A server that returns wrong products would otherwise decide what the client learns.",
    cases=SMALL.narrowed(m=(2, 3, 70), k=(5, 17), how=(*WRONG, "to an earlier input", "a gradient off by one")),
    dtypes=("float32",),
    needs=NEEDS,
    feature="answer_check",
)
def test_wrong_answers_are_errors(subject: Subject, case: QuantizedCase) -> float | None:
    problem, backend = Problem(case, subject.device), Liar()
    split = Split(subject, problem, backend=backend).compile()
    x = problem["x"].detach()
    expected = split.both("disable", x)
    for given in (x.flip(-1), x.flip(0)):
        split.forward("execute", given)
    first = backend.first  # the answer to the first input
    lie = {**WRONG, "to an earlier input": _always(first)}.get(case.how, WRONG["off by one in its last element"])
    if torch.equal(lie(backend.last), backend.last):
        return None
    leaf = x.clone().requires_grad_(True)
    if case.how == "a gradient off by one":
        y = split.forward("execute", leaf)
        backend.lies = lie
        refuses("the backward product, with a wrong answer", lambda: _backward(y, problem["g"]), types=REFUSED)
    else:
        backend.lies = lie
        refuses(f"mode execute, with an answer {case.how}", lambda: split.hybrid(x, fhe="execute"), types=REFUSED)
    backend.lies = None
    for name, found, right in zip(("y", "dX"), split.both("execute", x), expected, strict=True):
        require(torch.equal(found, right), f"{name} after a wrong answer differs from that of mode disable")
    return None


class Numbered(Recorder):
    """A backend that wants new keys for each input, and notes the keys and the ciphertexts."""

    fresh_keys = True

    def __init__(self) -> None:
        super().__init__(Parameters())
        self.made = 0
        self.used: list[bytes] = []

    def keygen(self) -> KeyPair:
        """Another pair of keys each time."""
        keys, self.made = KeyPair(), self.made + 1
        keys.evaluation = b"%d: " % self.made + KeyPair.evaluation
        return keys

    def encrypt(self, q: torch.Tensor, keys: Any, **options: Any) -> bytes:
        """As in the base class."""
        self.used.append(keys.evaluation)
        return super().encrypt(q, keys, **options)


@clause(
    "FHE-FRESH-KEYS",
    sentence="""A backend with fresh_keys = True gets new keys for each input that it encrypts, and a module never
    multiplies the same ciphertext twice, even if the same input comes again. evaluate gets the evaluation key of the
    ciphertext's pair.""",
    why="A server that sees several reactions to answers under one key can learn about it.",
    cases=SMALL.narrowed(m=(2, 3), lead=("2d", "3d")),
    dtypes=("float32",),
    needs=NEEDS,
    feature="fresh_keys",
    weight=0.5,
)
def test_each_input_has_its_own_keys(subject: Subject, case: QuantizedCase) -> float | None:
    problem, backend = Problem(case, subject.device), Numbered()
    split = Split(subject, problem, backend=backend).compile()
    for _ in range(2):
        leaf = problem["x"].detach().requires_grad_(True)
        backward(split.forward("execute", leaf), problem["g"])
    require(bool(backend.used), "mode execute encrypted nothing")
    twice = len(backend.used) - len(set(backend.used))
    require(not twice, f"{twice} of {len(backend.used)} inputs were encrypted under keys that were used before")
    seen = [given[0] for given in backend.given]
    again = len(seen) - len(set(seen))
    require(not again, f"{again} of {len(seen)} ciphertexts came to evaluate again")
    keys = [given[2] for given in backend.given]
    require(keys == backend.used, "evaluate got another evaluation key than that of the ciphertext's pair")
    return None
