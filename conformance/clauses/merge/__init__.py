"""Merging adds the adapter to the weight, and unmerging takes it away again."""

from conformance.specification.groups import Group

GROUP = Group(
    prefix="MRG",
    place=30,
    judged="merging and taking it back",
    names="the layer's `merge`, `unmerge`",
    required=("LinearLoRA", "LinearLoRA.merge", "LinearLoRA.unmerge"),
    subjects=("LinearLoRA", "TritonLinearLoRA"),
)
