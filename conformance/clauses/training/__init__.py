"""One training step of `LoraTraining`, `replace_layers_with_custom`, and the epochs of `LoraTrainer`."""

from conformance.specification.groups import Group

GROUP = Group(
    prefix="TRN",
    place=90,
    judged="loss, accumulation, clipping, steps, failed steps, replacement; epochs, checkpoints and evaluation",
    names="`LoraTraining`, `LoraTrainer`",
    required=("LoraTraining",),
    subjects=("LoraTraining", "LoraTrainer"),
    alone={"LoraTrainer": "training over epochs: windows, clipping, schedule, logs, evaluation, checkpoints"},
    positional={"LoraTraining": 1, "LoraTrainer": 5},
)
