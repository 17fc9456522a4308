"""LoRA layers as modules: `LinearLoRA` and `TritonLinearLoRA`."""

from collections.abc import Mapping
from typing import Any

from conformance.specification.groups import Group


def _shown(thing: Any) -> Mapping[str, str]:
    from conformance.clauses.layer.shown_conventions import shown  # imports torch

    return shown(thing)


GROUP = Group(
    prefix="LAY",
    place=20,
    judged="the same formula and gradients as modules; initialisation, state, copies, modes",
    names="`LinearLoRA`, `TritonLinearLoRA`",
    required=("LinearLoRA",),
    subjects=("LinearLoRA", "TritonLinearLoRA"),
    positional={"LinearLoRA": 7, "TritonLinearLoRA": 7},
    shown=_shown,
)
