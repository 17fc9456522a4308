"""DoRA splits the adapted weight into a trainable length of each row and its direction."""

from conformance.specification.groups import Group

GROUP = Group(
    prefix="DORA",
    place=40,
    judged="DoRA: the row norm, its gradient, the magnitude",
    names="`LinearLoRA(use_dora=True)`",
    required=("LinearLoRA", "LinearLoRA(use_dora)"),
    subjects=("LinearLoRA",),
)
