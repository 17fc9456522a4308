"""The gradient norm and clipping: `clip_grad_norm_` and `grad_norm`."""

from conformance.specification.groups import Group

GROUP = Group(
    prefix="GRN",
    place=80,
    judged="the norm at any size, and clipping",
    names="`clip_grad_norm_`, `grad_norm`",
    required=("clip_grad_norm_",),
    subjects=("clip_grad_norm_",),
    positional={"clip_grad_norm_": 2},
)
