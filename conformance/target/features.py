"""The features that a target has: declared, or shown by its signatures, or by a probe of its dropout."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

import torch
from torch import nn

from conformance.errors import TargetError
from conformance.isolation.monkeypatches import PRISTINE
from conformance.specification.features import ABSENT, AN_EFFECT, FEATURES
from conformance.target.limits import BEYOND, BIAS, LIMITS, VECTOR, works
from conformance.target.signature import arguments_for, takes

DROPOUT_POSITIONS = ("pre", "post")  # by default
ALL_POSITIONS = (*DROPOUT_POSITIONS, "mid")
ROWS, COLUMNS, RANK = 64, 64, 2  # of the probe: by chance all rows agree with probability 2⁻⁶³
ONES = ((RANK, 1), (1, RANK), (COLUMNS, RANK), (RANK, COLUMNS), (COLUMNS, 1))  # shapes of A, B, their transposes and W


def check_features(declared: Mapping[Any, Any], spec: str) -> None:
    """Check the features that a target declares.

    Raises:
        TargetError: for an unknown feature or value, with the nearest valid names.
    """
    for name, value in declared.items():
        if name not in FEATURES:
            expected = _nearest(name, FEATURES) + f"expected one of {', '.join(FEATURES)}"
            raise TargetError(f"{spec}.CONFORMANCE['features'] has the unknown feature {name!r}: {expected}")
        conventions = FEATURES[name].conventions
        if value not in conventions:
            expected = _nearest(value, conventions) + f"expected {' or '.join(map(repr, conventions))}"
            raise TargetError(f"{spec}.CONFORMANCE['features'][{name!r}] is {value!r}: {expected}")


def _nearest(name: Any, choices: Iterable[str]) -> str:
    """The name among the choices that a wrong one resembles, as a question; empty if there is none."""
    near = get_close_matches(str(name), list(choices), n=1)
    return f"did you mean {near[0]!r}? " if near else ""


def probed_position(kind: Any) -> str | None:
    """Where a layer class without `dropout_position` drops: `pre`, `mid` or `post`; None if the probe does not tell.

    A layer of one input feature and rank 2, with every weight one, shows it: dropout of x drops whole rows of the
    update, dropout between A and B also halves of them, dropout of the output drops single elements.
    """
    with PRISTINE.suspended(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            layer = kind(_probe_base(), **arguments_for(kind, {"dim": RANK, "alpha": RANK, "dropout": 0.5}))
            layer.train()
            with torch.no_grad():
                for parameter in layer.parameters():
                    if parameter.shape in ONES:
                        parameter.fill_(1.0)
                x = torch.ones(ROWS, 1)
                update = layer(x) - layer.eval()(x)
        except Exception:  # noqa: BLE001  (the clauses report whatever it is)
            return None
    if update.shape != (ROWS, COLUMNS) or not (update != update[0, 0]).any():
        return None
    if not bool((update == update[:, :1]).all()):
        return "post"
    return "mid" if len(update.unique()) > 2 else "pre"


def _probe_base() -> nn.Linear:
    return nn.Linear(1, COLUMNS, bias=False)


def positions(kind: Any) -> tuple[str, ...]:
    """The dropout positions of a callable: both if it takes `dropout_position`, else the one that a probe shows."""
    if takes(kind, "dropout") is None:
        return DROPOUT_POSITIONS
    if takes(kind, "dropout_position") is not None or not isinstance(kind, type):
        return DROPOUT_POSITIONS
    found = probed_position(kind)
    return (found,) if found else DROPOUT_POSITIONS


# A value of a feature's argument that changes the output of a layer, if the argument has an effect.
EFFECTIVE: Mapping[str, tuple[str, Any]] = {
    "dropout": ("dropout", 0.5),
    "rslora": ("use_rslora", True),
    "alpha": ("alpha", 6),
}


def contradictions(kind: Any, declared: Mapping[str, str]) -> list[str]:
    """What a layer class does other than it declares: a feature that it cannot have, or an absent one that acts."""
    found = []
    for name, value in declared.items():
        option = FEATURES[name].option
        if value != ABSENT and option and takes(kind, option) is None:
            found.append(f"feature {name!r} is declared {value}, but the layer does not take {option}")
        if value == ABSENT and name in EFFECTIVE and _acts(kind, *EFFECTIVE[name]):
            option, given = EFFECTIVE[name]
            found.append(f"feature {name!r} is declared absent, but {option}={given} changes the output")
        if value == ABSENT and name in LIMITS and works(kind, name):
            given = ", ".join(f"{option}={number}" for option, number in BEYOND.get(name, {}).items())
            given = {BIAS: "a base layer with a bias", VECTOR: "an x [K]"}.get(name, given)
            found.append(f"feature {name!r} is declared absent, but {given} works")
    return found


def is_local(kind: Any) -> bool:
    """Whether a class was defined inside a function, so that pickle cannot find it, whatever it holds."""
    return isinstance(kind, type) and "<locals>" in kind.__qualname__


def contradicted(shown: Mapping[str, str], declared: Mapping[str, str]) -> list[str]:
    """What a function does by another convention than the target declares."""
    return [
        f"feature {name!r} is {declared[name]!r}, but calls show {found!r}"
        for name, found in shown.items()
        if declared.get(name, found) != found and (found != AN_EFFECT or declared[name] == ABSENT)
    ]


def _acts(kind: Any, option: str, value: Any) -> bool:
    """Whether an option changes the output of a layer in training; an option that is refused does not."""
    taken = takes(kind, option)
    if taken is None:
        return False
    with PRISTINE.suspended(), torch.random.fork_rng(devices=[]), torch.no_grad():
        outputs = []
        for options in ({}, {taken: value}):
            torch.manual_seed(0)
            try:
                layer = kind(_probe_base(), **(arguments_for(kind, {"dim": 2, "alpha": 2}) | options))
                for parameter in layer.train().parameters():
                    parameter.fill_(1.0)
                outputs.append(layer(torch.ones(ROWS, 1)))
            except Exception:  # noqa: BLE001  (the target refuses the option)
                return False
        return not torch.equal(*outputs)
