"""DoRA splits each row of the adapted weight into a trainable length, its magnitude, and a direction."""

from conformance.specification.groups import Group

GROUP = Group(
    prefix="DORA",
    place=40,
    judged="DoRA: the row norm, its gradient, the magnitude",
    names="`LinearLoRA(use_dora=True)`",
    required=("LinearLoRA", "LinearLoRA(use_dora)"),
    subjects=("LinearLoRA",),
)
