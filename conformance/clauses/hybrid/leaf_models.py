"""Small models drawn from a case, with layers that run remotely and layers that belong to adapters."""

from __future__ import annotations

import random
from dataclasses import dataclass

from torch import nn

from conformance.cases.case import Case, Space
from conformance.clauses.hybrid.module_tree import ADAPTERS, ALIKE, PLAIN, linear


@dataclass(frozen=True)
class NamesCase(Case):
    """A model of few layers.

    Fields:
        remote, adapters: the number of layers that run remotely, and of layers that belong to adapters.
        embeddings: `include_embedding_layers`.
        names: the names of the remote layers: `plain`, or `alike`, which only resemble those of adapters and heads.
        deep: the whole model lies below a parent called `model`.
        how: the variant of the clause's model.
    """

    remote: int = 1
    adapters: int = 0
    names: str = "plain"
    embeddings: bool = False
    deep: bool = False
    how: str = ""


NAMES = Space(NamesCase, remote=(1, 2, 4, len(PLAIN)), adapters=(0, 2, 5, len(ADAPTERS)), deep=(False, True))


def remote_pool(case: NamesCase) -> tuple[str, ...]:
    """The names from which the remote layers of a case are drawn."""
    return ALIKE if case.names == "alike" else PLAIN


def drawn_leaves(case: NamesCase) -> tuple[dict[str, nn.Module], list[str]]:
    """The leaves of a model in an order drawn by the seed, and the names of the remote ones."""
    draw, prefix = random.Random(case.seed), "model." if case.deep else ""
    remote = [prefix + name for name in draw.sample(remote_pool(case), case.remote)]
    names = remote + [prefix + name for name in draw.sample(ADAPTERS, case.adapters)]
    draw.shuffle(names)
    return {name: linear() for name in names}, remote
