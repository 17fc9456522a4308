"""What a layer or a model lives through: sequences of operations on it, judged after every one of them."""

from collections.abc import Mapping
from typing import Any

from conformance.specification.groups import Group


def _shown(thing: Any) -> Mapping[str, str]:
    from conformance.clauses.layer.shown_conventions import shown  # imports torch

    return shown(thing)


GROUP = Group(
    prefix="LIFE",
    place=45,
    judged="sequences of operations: training, modes, merging, conversion, copies, loading, regions, changed tensors",
    names="`LinearLoRA`",
    required=("LinearLoRA",),
    subjects=("LinearLoRA", "TritonLinearLoRA", "apply_lora_to_linear_modules", "LoraTraining"),
    alone={
        "apply_lora_to_linear_modules": "sequences of operations on a model: adapting, ties, copies, merging, files",
        "LoraTraining": "training runs: accumulation, failed calls, saving and resuming, modes of a split model",
    },
    positional={"LoraTraining": 1},
    shown=_shown,
)
