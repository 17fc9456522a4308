"""LoRA layers as modules: `LinearLoRA` and `TritonLinearLoRA`."""

from conformance.clauses.layer.shown_conventions import shown
from conformance.specification.groups import Group

GROUP = Group(
    prefix="LAY",
    place=20,
    judged="the same formula and gradients as modules; initialisation, state, copies, modes",
    names="`LinearLoRA`, `TritonLinearLoRA`",
    required=("LinearLoRA",),
    subjects=("LinearLoRA", "TritonLinearLoRA"),
    positional={"LinearLoRA": 7, "TritonLinearLoRA": 7},
    shown=shown,
)
