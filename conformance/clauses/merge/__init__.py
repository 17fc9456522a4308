"""Merging adds the adapter's update to the weight, and unmerging restores the weight."""

from conformance.specification.groups import Group

GROUP = Group(
    prefix="MRG",
    place=30,
    judged="merging and unmerging",
    names="the layer's `merge`, `unmerge`",
    required=("LinearLoRA", "LinearLoRA.merge"),  # a library may merge for good
    subjects=("LinearLoRA", "TritonLinearLoRA"),
    feature="merging",
)
