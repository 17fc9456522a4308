"""Models of few layers, some of which run remotely and some belong to adapters, drawn from a case."""

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
        remote, adapters: how many layers that run remotely, and that belong to adapters, it has.
        embeddings: `include_embedding_layers`.
        names: of the remote layers: `plain`, or `alike` those of adapters and heads without being any.
        deep: whether the whole model lies below a parent called `model`.
        how: which of the clause's models.
    """

    remote: int = 1
    adapters: int = 0
    names: str = "plain"
    embeddings: bool = False
    deep: bool = False
    how: str = ""


NAMES = Space(NamesCase, remote=(1, 2, 4, len(PLAIN)), adapters=(0, 2, 5, len(ADAPTERS)), deep=(False, True))


def remote_pool(case: NamesCase) -> tuple[str, ...]:
    """Names that the remote layers of a case are drawn from."""
    return ALIKE if case.names == "alike" else PLAIN


def drawn_leaves(case: NamesCase) -> tuple[dict[str, nn.Module], list[str]]:
    """Leaves of a model in an order drawn from the seed, and the names among them that are remote."""
    draw, prefix = random.Random(case.seed), "model." if case.deep else ""
    remote = [prefix + name for name in draw.sample(remote_pool(case), case.remote)]
    names = remote + [prefix + name for name in draw.sample(ADAPTERS, case.adapters)]
    draw.shuffle(names)
    return {name: linear() for name in names}, remote
