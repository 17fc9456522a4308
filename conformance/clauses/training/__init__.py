"""One training step of `LoraTraining`, and `replace_layers_with_custom`."""

from conformance.specification.groups import Group

GROUP = Group(
    prefix="TRN",
    place=90,
    judged="loss, accumulation, clipping, steps, failed steps, replacement",
    names="`LoraTraining`",
    required=("LoraTraining",),
    subjects=("LoraTraining",),
    positional={"LoraTraining": 1},
)
