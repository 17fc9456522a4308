"""The limits of a layer class: values of its arguments for which it refuses to be built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

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
REFUSALS = (ValueError, AssertionError, NotImplementedError)


def refused(kind: Any) -> frozenset[str]:
    """The features of which a layer class refuses the values; none where building a layer hangs or ends the process."""
    if not isinstance(kind, type):
        return frozenset()
    return frozenset(safely(lambda: sorted(refused_here(kind))) or ())


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
        if _refuses(kind, {}) is not False:
            return frozenset()
        return frozenset(name for name, options in BEYOND.items() if _taken(kind, options) and _refuses(kind, options))


def works(kind: Any, name: str) -> bool:
    """Whether a class that declares to lack a feature has it: layers of a large rank, no update for the others."""
    options = BEYOND[name]
    with PRISTINE.suspended(), torch.random.fork_rng(devices=[]), torch.no_grad():
        if not _taken(kind, options) or _refuses(kind, options) is not False:
            return False
        if name == "large_rank":
            return True
        base, x = nn.Linear(K, N), torch.ones(2, K)
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


def _refuses(kind: Any, options: Mapping[str, Any]) -> bool | None:
    """Whether a class refuses options; None if building raises what is no refusal."""
    try:
        _built(kind, options, nn.Linear(K, N))
    except REFUSALS:
        return True
    except Exception:  # noqa: BLE001  (the clauses report whatever it is)
        return None
    return False


def _built(kind: Any, options: Mapping[str, Any], base: nn.Linear) -> Any:
    return kind(base, **arguments_for(kind, {**LEAST, **options}))
