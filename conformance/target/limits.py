"""The limits of a layer class: values of its arguments, base layers and inputs that it refuses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any
from weakref import ref

import torch
from torch import nn

from conformance.isolation import processes
from conformance.isolation.monkeypatches import PRISTINE
from conformance.isolation.process_state import RESTORED, restore, taken
from conformance.target.signature import arguments_for, takes

SECONDS = 5.0  # for building the layers
K, N = 4, 3  # of the probed layer
LEAST: Mapping[str, Any] = {"dim": 1, "alpha": 1}
# By feature the values beyond the limit: a class that refuses them lacks the feature.
BEYOND: Mapping[str, Mapping[str, Any]] = {
    "large_rank": {"dim": K + 1},
    "full_dropout": {"dropout": 1.0},
    "zero_alpha": {"alpha": 0},
}
BIAS = "base_bias"  # the limit of a class that only adapts layers without a bias
VECTOR = "vector_inputs"  # the limit of a class that refuses an x [K], which a target declares
LIMITS = (*BEYOND, BIAS, VECTOR)
REFUSALS = (ValueError, AssertionError, NotImplementedError)
# The answers so far by the class's id, each with the class and its constructor: several targets may have one class, and
# a copy of a process that has imported torch takes 40 ms.
_ANSWERS: dict[int, tuple[ref[type], Any, frozenset[str]]] = {}


def refused(kind: Any) -> frozenset[str]:
    """The features of which a layer class refuses the values; none where building a layer hangs or ends the process."""
    if not isinstance(kind, type):
        return frozenset()
    # a class that is changed in a notebook has another constructor
    constructor = kind.__init__  # type: ignore[misc]
    of, by, answer = _ANSWERS.get(id(kind), (None, None, frozenset()))
    if of is not None and of() is kind and by is constructor:
        return answer
    found = safely(lambda: sorted(refused_here(kind)))
    if found is not None:  # a class that takes too long once may not do so the next time
        _ANSWERS[id(kind)] = ref(kind), constructor, frozenset(found)
    return frozenset(found or ())


def safely(work: Callable[[], Any]) -> Any:
    """What a function returns in a copy of this process; None if it hangs or ends the process."""
    cuda: Any = torch.cuda
    if cuda.is_initialized():  # a GPU's driver does not survive a fork
        before = taken(RESTORED)
        try:
            return work()
        finally:
            restore(before)
    return processes.answered(work, SECONDS)


def refused_here(kind: Any) -> frozenset[str]:
    """The features of which a layer class refuses the values, though it builds the least layer."""
    with PRISTINE.suspended(), torch.random.fork_rng(devices=[]):
        bias = _refuses(kind, {}) is not True
        if _refuses(kind, {}, bias=bias) is not False:
            return frozenset()
        found = {n for n, given in BEYOND.items() if _taken(kind, given) and _refuses(kind, given, bias=bias)}
        return frozenset(found if bias else found | {BIAS})


def works(kind: Any, name: str) -> bool:
    """Whether a class that declares to lack a feature has it: layers of a large rank, no update for the others."""
    options = BEYOND.get(name, {})
    with PRISTINE.suspended(), torch.random.fork_rng(devices=[]), torch.no_grad():
        if name == BIAS:
            return _refuses(kind, {}) is False
        bias = _refuses(kind, {}) is not True
        if name == VECTOR:
            return _takes_vectors(kind, bias=bias)
        if not _taken(kind, options) or _refuses(kind, options, bias=bias) is not False:
            return False
        if name == "large_rank":
            return True
        base, x = nn.Linear(K, N, bias=bias), torch.ones(2, K)
        expected = base(x)
        try:
            layer = _built(kind, options, base).train()
            for parameter in layer.parameters():
                if parameter.shape in ((1, K), (N, 1), (K, 1), (1, N)):
                    parameter.fill_(1.0)
            return torch.equal(layer(x), expected)
        except Exception:  # noqa: BLE001  (the target refuses it in another way)
            return False


def _taken(kind: Any, options: Mapping[str, Any]) -> bool:
    return all(takes(kind, name) is not None for name in options)


def _refuses(kind: Any, options: Mapping[str, Any], *, bias: bool = True) -> bool | None:
    """Whether a class refuses options, over a base with or without a bias; None if it raises what is no refusal."""
    try:
        _built(kind, options, nn.Linear(K, N, bias=bias))
    except REFUSALS:
        return True
    except Exception:  # noqa: BLE001  (the clauses report whatever it is)
        return None
    return False


def _takes_vectors(kind: Any, *, bias: bool) -> bool:
    try:
        return bool(_built(kind, {}, nn.Linear(K, N, bias=bias))(torch.ones(K)).shape == (N,))
    except Exception:  # noqa: BLE001  (the target refuses it)
        return False


def _built(kind: Any, options: Mapping[str, Any], base: nn.Linear) -> Any:
    return kind(base, **arguments_for(kind, {**LEAST, **options}))
