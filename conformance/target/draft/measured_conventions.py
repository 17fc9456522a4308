"""The conventions that a small built layer is measured to follow, where they are not the default."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from conformance.errors import UsageError
from conformance.target.draft.arguments import Argument, meanings_of
from conformance.target.draft.built_layer import BuiltLayer, built


class Followed(NamedTuple):
    """A convention that a layer follows, with what shows it."""

    feature: str
    convention: str
    reason: str


def followed(layer: type, found: tuple[Argument, ...], named: str, x: Tensor, *, merges: bool) -> Iterator[Followed]:
    """The conventions of a class's layers.

    Args:
        x: an input of a built layer.   merges: whether the layers merge their adapters.
    """
    if _keeps_the_dtype(built(layer, found, named), x):
        yield Followed("autocast", "input dtype", "under autocast, a built layer kept the dtype of its input")
    if merges and _saves_what_is_merged(built(layer, found, named)):
        yield Followed("merged_state", "merged", "merge() changed the weight in a built layer's state_dict")
    if "alpha" in meanings_of(found) and _takes_the_rank_for_zero(layer, found, named, x):
        yield Followed("zero_alpha", "rank", "a layer built with alpha=0 had the factor of alpha=rank")


def _keeps_the_dtype(made: BuiltLayer, x: Tensor) -> bool:
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
            return bool(made.layer(x).dtype == x.dtype)
    except Exception:  # noqa: BLE001  (it does not run under autocast, which is another feature)
        return False


def _saves_what_is_merged(made: BuiltLayer) -> bool:
    layer: Any = made.layer.eval()
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    layer.merge()
    after = layer.state_dict()
    changed = [name for name, value in before.items() if name in after and not torch.equal(after[name], value)]
    return len(changed) == 1 and after[changed[0]].shape == made.base.weight.shape


def _takes_the_rank_for_zero(layer: type, found: tuple[Argument, ...], named: str, x: Tensor) -> bool:
    try:
        made = built(layer, found, named, alpha=0)
        with torch.no_grad():
            factor = made.factor(made.layer(x), x)[0]
    except (UsageError, RuntimeError):
        return False
    return factor is not None and math.isclose(factor, 1, rel_tol=1e-3)
